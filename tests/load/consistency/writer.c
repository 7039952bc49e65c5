/*
 * Writes to 50 files of a directory in a strict order: writer DIRECTORY [STEPS [OTHER]]
 *
 * Step n writes the number n to file n mod 50 and has ended before step n + 1 begins. So the directory at any instant
 * shows a prefix of this history. history.rs knows what each file contains after each step. With another directory, the
 * odd files are there, and only both together show a prefix. Compiled with SYNCED=1, a step ends when it is on stable storage.
 *
 * It is in C because a shared mapping, asynchronous I/O and an exchange of names are calls of the kernel.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FILES = 50, PAGE = 4096, PAGES = 16, SLOTS = 512, DIRECT = 64 << 10, LARGE = 1 << 20 };

static int directories[2], files[FILES];
static volatile uint64_t *mapping;
static uint64_t *block, *large;
static aio_context_t aio;

static void require(int holds, const char *what) {
    if (!holds) {
        perror(what);
        exit(1);
    }
}

static int open_file(int number, const char *name, int flags) {
    int file = openat(directories[number % 2], name, flags | O_CREAT | O_CLOEXEC, 0600);
    require(file >= 0, name);
    return file;
}

static void end_step(int file) {
    if (SYNCED) require(fsync(file) == 0, "fsync");
}

static void write_number(int file, uint64_t number, off_t offset) {
    require(pwrite(file, &number, sizeof number, offset) == sizeof number, "write a number");
}

static void create_with(int file_number, const char *name, uint64_t number) {
    int file = open_file(file_number, name, O_WRONLY);
    write_number(file, number, 0);
    end_step(file);
    close(file);
}

static void fill(uint64_t *buffer, size_t bytes, uint64_t number) {
    for (size_t i = 0; i < bytes / sizeof number; i++) buffer[i] = number;
}

static void write_large(uint64_t number) {
    fill(large, LARGE, number);
    require(pwrite(files[5], large, LARGE, 0) == LARGE, "write much");
}

static void write_direct(uint64_t number) {
    fill(block, DIRECT, number);
    struct iocb request = {.aio_fildes = files[4], .aio_lio_opcode = IOCB_CMD_PWRITE,
        .aio_buf = (uintptr_t)block, .aio_nbytes = DIRECT};
    struct iocb *requests[] = {&request};
    struct io_event event;
    require(syscall(SYS_io_submit, aio, 1, requests) == 1, "io_submit");
    /* A thaw interrupts the wait. */
    while (syscall(SYS_io_getevents, aio, 1, 1, &event, NULL) != 1) {}
    require(event.res == DIRECT, "write past the page cache");
}

static int open_directory(const char *path) {
    int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    require(directory >= 0, path);
    return directory;
}

static void set_up(const char *path, const char *other) {
    directories[0] = open_directory(path);
    directories[1] = open_directory(other);
    files[0] = open_file(0, "mapping", O_RDWR);
    require(ftruncate(files[0], PAGE * PAGES) == 0, "ftruncate");
    mapping = mmap(NULL, PAGE * PAGES, PROT_READ | PROT_WRITE, MAP_SHARED, files[0], 0);
    require(mapping != MAP_FAILED, "mmap");
    files[1] = open_file(1, "append", O_WRONLY | O_APPEND);
    create_with(2, "rename", 0);
    create_with(3, "exchange", 0);
    create_with(3, "exchange.other", 0);
    files[4] = open_file(4, "direct", O_WRONLY | O_DIRECT);
    require(posix_memalign((void **)&block, PAGE, DIRECT) == 0, "memory");
    require(syscall(SYS_io_setup, 1, &aio) == 0, "io_setup");
    write_direct(0);
    files[5] = open_file(5, "large", O_WRONLY);
    large = malloc(LARGE);
    write_large(0);
    for (int i = 6; i < FILES; i++) {
        char name[16];
        snprintf(name, sizeof name, "plain-%02d", i);
        files[i] = open_file(i, name, O_WRONLY);
        require(ftruncate(files[i], SLOTS * sizeof(uint64_t)) == 0, "ftruncate");
    }
}

static void step(uint64_t n) {
    uint64_t round = n / FILES;
    switch (n % FILES) {
    case 0: mapping[round % PAGES * (PAGE / sizeof n)] = n; break;
    case 1: require(write(files[1], &n, sizeof n) == sizeof n, "append"); break;
    case 2:
        create_with(2, "rename.new", n);
        require(renameat(directories[0], "rename.new", directories[0], "rename") == 0, "rename");
        break;
    case 3:
        create_with(3, "exchange.other", n);
        require(renameat2(directories[1], "exchange.other", directories[1], "exchange", RENAME_EXCHANGE) == 0, "exchange");
        break;
    case 4: write_direct(n); break;
    case 5: write_large(n); break;
    default: write_number(files[n % FILES], n, round % SLOTS * sizeof n);
    }
    /* The others are new names in their directory. */
    end_step(n % FILES == 2 || n % FILES == 3 ? directories[n % FILES % 2] : files[n % FILES]);
}

int main(int argc, char **argv) {
    uint64_t steps = argc > 2 ? strtoull(argv[2], NULL, 10) : UINT64_MAX;
    require(argc > 1, "writer DIRECTORY [STEPS [OTHER]]");
    set_up(argv[1], argc > 3 ? argv[3] : argv[1]);
    for (uint64_t n = 1; n <= steps; n++) {
        step(n);
        if (n == 2 * FILES) {
            puts("started");
            fflush(stdout);
        }
    }
    return 0;
}
