/* Feeds the fast path's reading of answers, and its other readers of foreign bytes, from a fixed sequence of numbers.
 *
 * usage: fuzz COUNT; compares each of COUNT answers with a second, simpler reading, and exits 1 at the first difference.
 */
#include "../../../build/fastpath/fastpath.c"

#include <stdlib.h>

static uint64_t state = 88172645463325252u;

/* xorshift64: the same numbers every time. */
static unsigned random_below(unsigned limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state % limit);
}

/* What the bytes of a whole answer mean, said in another way than fastpath.c does. */
static enum outcome meaning(const unsigned char *bytes, size_t size, int *code) {
    if (size == 0 || bytes[0] != 'A')
        return FALL_BACK;
    if (size < 3 || bytes[1] != 'X')
        return BROKEN;
    *code = bytes[2];
    return EXITED;
}

static void check_answer(void) {
    static const unsigned char likely[] = {'A', 'X', 'R', 'S', 0, 1, 255};
    unsigned char bytes[4096];
    size_t size = random_below(50) == 0 ? random_below(sizeof bytes) : random_below(6);
    int pair[2], code = -1, expected_code = -1;

    for (size_t i = 0; i < size; i++)
        bytes[i] = random_below(4) ? likely[random_below(sizeof likely)] : (unsigned char)random_below(256);
    if (size > 0 && random_below(2))
        bytes[0] = 'A';
    if (size > 1 && random_below(2))
        bytes[1] = 'X';
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0 ||
        send(pair[1], bytes, size, 0) != (ssize_t)size || shutdown(pair[1], SHUT_WR) != 0)
        exit(2);
    if (converse(pair[0], &code) != meaning(bytes, size, &expected_code) || code != expected_code)
        exit(1);
    close(pair[0]);
    close(pair[1]);
}

/* Words of random bytes, of any length, must be read within their ends; the sanitizers tell. */
static void check_words(void) {
    char words[4][40], *argv[5] = {NULL};
    int argc = (int)random_below(5);
    struct sockaddr_un address;

    for (int i = 0; i < argc; i++) {
        static const char *const known[] = {"start", "-v", "_PYI_", "LD_X=", FOLDER_VARIABLE "=", SWITCH_VARIABLE "=off"};
        snprintf(words[i], sizeof words[i], "%.*s", (int)random_below(40), known[random_below(6)]);
        if (random_below(2))
            words[i][random_below(30)] = (char)random_below(256);
        words[i][sizeof words[i] - 1] = 0;
        argv[i] = words[i];
    }
    is_wanted(argc, argv);
    is_steered(argv);
    variable(argv, SWITCH_VARIABLE);
    zygote_address(argv, &address);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? atoi(argv[1]) : 0;
    for (int i = 0; i < count; i++) {
        check_answer();
        check_words();
    }
    printf("%d answers\n", count);
    return 0;
}
