/* Prints which functions a program calls:  called FUNCTIONS OUTPUT PROGRAM [ARGUMENT ...]
 *
 * FUNCTIONS has lines as `nm` prints them, "ADDRESS t NAME", of a program at fixed addresses.  A breakpoint is set at each,
 * in the program and in all processes that it forks, and taken away when it is first met; the names go to OUTPUT, in the
 * order in which they were met, each once for all processes.  What a child executes is not looked at.
 */
#define _GNU_SOURCE

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>

#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 65536
static struct function {
    unsigned long address;
    char *name;
    unsigned char byte;
    char is_met;
} functions[MOST];
static size_t count;

static int compare(const void *one, const void *two) {
    const struct function *a = one, *b = two;
    return (a->address > b->address) - (a->address < b->address);
}

static unsigned char poke(pid_t pid, unsigned long address, unsigned char byte) {
    long word = ptrace(PTRACE_PEEKTEXT, pid, (void *)address, NULL);
    ptrace(PTRACE_POKETEXT, pid, (void *)address, (void *)((word & ~0xffL) | byte));
    return (unsigned char)word;
}

static void met(pid_t pid, FILE *output) {
    struct user_regs_struct registers;
    struct function wanted, *found;

    ptrace(PTRACE_GETREGS, pid, NULL, &registers);
    wanted.address = registers.rip - 1;
    found = bsearch(&wanted, functions, count, sizeof *functions, compare);
    if (found == NULL)
        return;
    poke(pid, found->address, found->byte);
    registers.rip--;
    ptrace(PTRACE_SETREGS, pid, NULL, &registers);
    if (!found->is_met) {
        found->is_met = 1;
        fprintf(output, "%s\n", found->name);
        fflush(output);
    }
}

static size_t without_doubles(void) { /* two names of one function */
    size_t kept = 0;

    for (size_t i = 0; i < count; i++)
        if (kept == 0 || functions[i].address != functions[kept - 1].address)
            functions[kept++] = functions[i];
    return kept;
}

int main(int argc, char **argv) {
    FILE *list = argc > 3 ? fopen(argv[1], "r") : NULL, *output = argc > 3 ? fopen(argv[2], "a") : NULL;
    char name[4096], kind;
    unsigned long address;
    pid_t first, pid;
    int status, is_started = 0, ends[2];
    unsigned char code = 127;
    long options = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;

    if (list == NULL || output == NULL)
        return 2;
    while (count < MOST && fscanf(list, "%lx %c %4095s", &address, &kind, name) == 3)
        if (kind == 't' || kind == 'T')
            functions[count++] = (struct function){address, strdup(name), 0, 0};
    qsort(functions, count, sizeof *functions, compare);
    count = without_doubles();
    if (pipe(ends) || fork() != 0) { /* the caller waits for the program, not for what it leaves behind */
        close(ends[1]);
        _exit(read(ends[0], &code, 1) == 1 ? code : 127);
    }
    first = fork();
    if (first == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv(argv[3], argv + 3);
        _exit(127);
    }
    setsid();
    close(ends[0]);
    for (int fd = 0; fd < 3; fd++)
        close(fd);
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        int signal = 0, event = status >> 16;
        if (!WIFSTOPPED(status)) {
            code = (unsigned char)(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
            if (pid == first && write(ends[1], &code, 1) != 1)
                return 1;
            continue;
        }
        if (!is_started) {
            is_started = 1;
            ptrace(PTRACE_SETOPTIONS, pid, NULL, (void *)options);
            for (size_t i = 0; i < count; i++)
                functions[i].byte = poke(pid, functions[i].address, 0xcc);
        } else if (event == PTRACE_EVENT_EXEC) {
            ptrace(PTRACE_DETACH, pid, NULL, NULL);
            continue;
        } else if (WSTOPSIG(status) == SIGTRAP && event == 0) {
            met(pid, output);
        } else if (event == 0 && WSTOPSIG(status) != SIGSTOP) {
            signal = WSTOPSIG(status);
        }
        ptrace(PTRACE_CONT, pid, NULL, (void *)(long)signal);
    }
    return 0;
}
