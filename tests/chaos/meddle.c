/* A library that is loaded before a program's own: it steps the wall clock and holds up the disk, as a file says.
 *
 * The file MEDDLE_FILE is shared memory of numbers of 64 bits (see meddle.py): the milliseconds that each
 * opening, renaming or removing below MEDDLE_STORE takes longer; the milliseconds that each write to a file and
 * each sync takes longer; the milliseconds that all clocks are ahead; and the same for each process by its number.
 * Both names are compiled in: a process is told nothing but what it may have, so no variable of ours gets to it.
 * The monotonic clock is left alone, as it is by an administrator or a time server that sets the other.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { STORE_MS, DISK_MS, AHEAD_MS, AHEAD_MS_OF };
#define PIDS_MAX (1 << 22)

static volatile int64_t *control;
static const char *const store = MEDDLE_STORE;

__attribute__((constructor)) static void begin(void) {
    int descriptor = open(MEDDLE_FILE, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, (AHEAD_MS_OF + PIDS_MAX) * sizeof *control, PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) control = mapped;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int64_t ahead(void) {
    return control ? control[AHEAD_MS] + control[AHEAD_MS_OF + getpid() % PIDS_MAX] : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int failed = real(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t milliseconds = ahead();
        now->tv_sec += milliseconds / 1000;
        now->tv_nsec += milliseconds % 1000 * 1000000;
        if (now->tv_nsec >= 1000000000) now->tv_sec++, now->tv_nsec -= 1000000000;
        if (now->tv_nsec < 0) now->tv_sec--, now->tv_nsec += 1000000000;
    }
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME, &fine);
    if (into) *into = fine.tv_sec;
    return fine.tv_sec;
}

static void take(int64_t milliseconds) {
    struct timespec length = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    if (milliseconds > 0) nanosleep(&length, NULL);
}

static void reach(const char *path) {
    if (control && control[STORE_MS] && store && path && !strncmp(path, store, strlen(store))) take(control[STORE_MS]);
}

static void commit(int descriptor) {
    struct stat found;
    if (control && control[DISK_MS] && !fstat(descriptor, &found) && S_ISREG(found.st_mode)) take(control[DISK_MS]);
}

#define MODE(last) \
    va_list rest; \
    va_start(rest, last); \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest)

int open(const char *path, int flags, ...) {
    REAL(open);
    MODE(flags);
    reach(path);
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    MODE(flags);
    reach(path);
    return real(path, flags, mode);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    reach(to);
    return real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    reach(path);
    return real(path);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
    REAL(write);
    commit(descriptor);
    return real(descriptor, bytes, size);
}

ssize_t writev(int descriptor, const struct iovec *pieces, int count) {
    REAL(writev);
    commit(descriptor);
    return real(descriptor, pieces, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t size, off_t offset) {
    REAL(pwrite);
    commit(descriptor);
    return real(descriptor, bytes, size, offset);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t size, off64_t offset) {
    REAL(pwrite64);
    commit(descriptor);
    return real(descriptor, bytes, size, offset);
}

int fsync(int descriptor) {
    REAL(fsync);
    commit(descriptor);
    return real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    commit(descriptor);
    return real(descriptor);
}
