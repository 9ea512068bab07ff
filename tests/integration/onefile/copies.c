/* usage: copies TARGET SOURCE...; joins files as PyInstaller's bootloader copies them, 8 KiB at a time. */
#include <stdio.h>

int main(int argc, char **argv) {
    FILE *target = fopen(argv[1], "wb"), *other;
    unsigned char block[8192];
    size_t got;

    for (int i = 2; i < argc && target != NULL; i++) {
        FILE *source = fopen(argv[i], "rb");
        other = fopen(argv[i], "rb"); /* one more than there are buffers for */
        if (source == NULL || other == NULL || fread(block, 1, 1, other) > 1)
            return 1;
        while ((got = fread(block, 1, sizeof block, source)) > 0)
            if (fwrite(block, 1, got, target) != got)
                return 2;
        fclose(other);
        fclose(source);
    }
    return target == NULL || fclose(target) != 0;
}
