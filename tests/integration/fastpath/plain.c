/* Stands in for PyInstaller's bootloader: where its main would run, the plain path has been taken. */
#include <stdio.h>

int main(void) {
    puts("plain");
    return 42;
}
