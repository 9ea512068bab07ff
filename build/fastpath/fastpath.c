/* The fast path: before PyInstaller's bootloader unpacks anything, ask a warm process to do the work.
 *
 * This one object is linked into the unchanged bootloader (build/spec/bootloader.py).  Its constructor runs before the
 * bootloader's main.  If a fork server of this very binary listens (shim/runtime/zygote.py, "the zygote"), they say to
 * each other (shim/runtime/zygote_protocol.py has the same words):
 *
 *     we:   Q       can you do this?  It reads from /proc who we are, our arguments and our environment.
 *     it:   A       yes.  R, the end, anything else, or nothing in time: no.
 *     we:   S       do it, with our descriptors 0, 1, 2 and working directory.  Only now anything is done, and once.
 *     it:   X code  done, with this exit code.
 *
 * Rule: in doubt, return, and the bootloader goes on as if nothing had happened, which costs time and nothing else.  Only
 * after S there is no way back.  The descriptors go to nobody who has not just answered: they would keep containerd
 * waiting for the end of our output.  No allocation, no global state, nothing that outlives the call.
 */
#define _GNU_SOURCE
#include <features.h>
#ifdef __GLIBC__ /* which passes main's arguments to constructors; elsewhere there is no fast path */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define SWITCH_VARIABLE "CONTAINERD_SHIM_FASTPATH"
#define FOLDER_VARIABLE "CONTAINERD_SHIM_ZYGOTE_DIR"
/* How long a zygote may take to accept.  One that is stopped, or has more to do than that, is done without. */
#define PATIENCE_S 1
#define PASSED 4 /* descriptors 0, 1, 2 and the working directory */

/* What the conversation came to. */
enum outcome { FALL_BACK, EXITED, BROKEN };

/* Variables that change what an exec of this binary would be: the loader's, libc's, PyInstaller's (so a bootloader's own
 * child never gets here), and core scheduling, which a worker would have to undo. */
static const char *const steering[] = {"LD_", "MALLOC_", "GLIBC_TUNABLES=", "_PYI_", "PYINSTALLER_", "SCHED_CORE="};

static int is_steered(char *const *envp) {
    for (; *envp != NULL; envp++)
        for (size_t i = 0; i < sizeof steering / sizeof *steering; i++)
            if (strncmp(*envp, steering[i], strlen(steering[i])) == 0)
                return 1;
    return 0;
}

/* The value of a variable, or NULL. */
static const char *variable(char *const *envp, const char *name) {
    size_t length = strlen(name);
    for (; *envp != NULL; envp++)
        if (strncmp(*envp, name, length) == 0 && (*envp)[length] == '=')
            return *envp + length + 1;
    return NULL;
}

/* start and delete, by which containerd waits, and -v.  What else the arguments say is for the worker to parse. */
static int is_wanted(int argc, char *const *argv) {
    static const char *const version[] = {"-v", "--v", "-version", "--version"};
    if (argc < 2)
        return 0;
    const char *last = argv[argc - 1];
    if (argc == 2)
        for (size_t i = 0; i < sizeof version / sizeof *version; i++)
            if (strcmp(last, version[i]) == 0)
                return 1;
    return strcmp(last, "start") == 0 || strcmp(last, "delete") == 0;
}

/* FNV-1a of the numbers' bytes, lowest first. */
static uint64_t hash(const uint64_t *numbers, size_t count) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < count; i++)
        for (int shift = 0; shift < 64; shift += 8)
            sum = (sum ^ (numbers[i] >> shift & 0xff)) * 0x100000001b3u;
    return sum;
}

/* The socket of the zygote of this file, these namespaces and this parent, so that an upgraded binary never meets an old
 * zygote, and two containerds have one each.  Returns 0 if there can be none. */
static int zygote_address(char *const *envp, struct sockaddr_un *address) {
    static const char *const spaces[] = {"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"};
    enum { SPACES = sizeof spaces / sizeof *spaces, OF_FILE = 5 };
    uint64_t numbers[OF_FILE + SPACES + 1];
    struct stat status;
    char path[sizeof address->sun_path];
    const char *folder = variable(envp, FOLDER_VARIABLE);
    pid_t parent = getppid();
    int length;

    if (parent <= 0) /* outside our pid namespace: a zygote could not know it */
        return 0;
    if (folder != NULL && *folder != '\0')
        length = snprintf(path, sizeof path, "%s", folder);
    else if (geteuid() == 0)
        length = snprintf(path, sizeof path, "/run/containerd-shim-0");
    else
        length = snprintf(path, sizeof path, "/run/user/%u/containerd-shim", (unsigned)geteuid());
    if (length <= 0 || (size_t)length >= sizeof path)
        return 0;
    if (lstat(path, &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid() ||
        (status.st_mode & 07777) != 0700)
        return 0;
    if (stat("/proc/self/exe", &status) != 0)
        return 0;
    numbers[0] = status.st_dev;
    numbers[1] = status.st_ino;
    numbers[2] = (uint64_t)status.st_ctim.tv_sec;
    numbers[3] = (uint64_t)status.st_ctim.tv_nsec;
    numbers[4] = (uint64_t)status.st_size;
    for (size_t i = 0; i < SPACES; i++) {
        char link[32];
        snprintf(link, sizeof link, "/proc/self/ns/%s", spaces[i]);
        numbers[OF_FILE + i] = stat(link, &status) == 0 ? status.st_ino : 0;
    }
    numbers[OF_FILE + SPACES] = (uint64_t)parent;
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    length = snprintf(address->sun_path, sizeof address->sun_path, "%s/%016llx", path,
                      (unsigned long long)hash(numbers, sizeof numbers / sizeof *numbers));
    return length > 0 && (size_t)length < sizeof address->sun_path;
}

/* A connection to a process of our own user, or -1. */
static int reach(const struct sockaddr_un *address) {
    const struct timeval patience = {.tv_sec = PATIENCE_S};
    struct ucred peer;
    socklen_t length = sizeof peer;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return -1;
    if (fd > 2 && /* else one of 0, 1 and 2 was not open */
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0 &&
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0 &&
        connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && length == sizeof peer &&
        peer.uid == geteuid())
        return fd;
    close(fd);
    return -1;
}

/* Sends what there is no way back from; 0 if it could not be sent, so that nobody has it. */
static int commit(int fd) {
    union {
        struct cmsghdr head;
        char space[CMSG_SPACE(PASSED * sizeof(int))];
    } control;
    char word = 'S';
    struct iovec data = {.iov_base = &word, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
    int fds[PASSED] = {0, 1, 2, open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)};
    ssize_t sent;

    if (fds[3] < 0)
        return 0;
    memset(&control, 0, sizeof control);
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(&control.head), fds, sizeof fds);
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    close(fds[3]);
    return sent == 1;
}

/* The next byte that is said to us, or -1 at the end, at an error, or when no more patience is left. */
static int next(int fd, int is_patient) {
    unsigned char byte;
    ssize_t got;
    do
        got = recv(fd, &byte, 1, 0);
    while (got < 0 && (errno == EINTR || (is_patient && errno == EAGAIN)));
    return got == 1 ? byte : -1;
}

/* The whole conversation.  From S on without a limit, since a start waits for its input as long as that takes. */
static enum outcome converse(int fd, int *code) {
    int byte;

    if (send(fd, "Q", 1, MSG_NOSIGNAL) != 1 || next(fd, 0) != 'A' || !commit(fd))
        return FALL_BACK;
    /* As the bootloader passes these on to a process that ignores them, a start is not to be ended by them. */
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    if (next(fd, 1) != 'X' || (byte = next(fd, 1)) < 0)
        return BROKEN;
    *code = byte;
    return EXITED;
}

static void complain(const char *text) {
    ssize_t ignored = write(2, text, strlen(text));
    (void)ignored;
}

__attribute__((constructor)) static void fast_path(int argc, char **argv, char **envp) {
    const char *wanted = variable(envp, SWITCH_VARIABLE);
    struct sockaddr_un address;
    enum outcome outcome;
    int fd, code = 1;

    if (getauxval(AT_SECURE) || (wanted != NULL && strcmp(wanted, "off") == 0) || !is_wanted(argc, argv) ||
        is_steered(envp) || !zygote_address(envp, &address))
        return;
    fd = reach(&address);
    if (fd < 0)
        return;
    outcome = converse(fd, &code);
    close(fd);
    if (outcome == FALL_BACK)
        return;
    if (outcome == BROKEN)
        complain("containerd-shim: the process that did the work ended without a word\n");
    _exit(code);
}
#endif
