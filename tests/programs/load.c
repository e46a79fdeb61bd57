/*
 * Work for a kernel, whose every result is known beforehand:
 *
 *	load
 *
 * Processes that call the kernel all the time and check what it answers. Says `tick N`, where N
 * rounds are done in each of them, until its standard input ends; then `right` if everything was
 * as it has to be. What was not is said with `wrong`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKERS 2

/* What the workers tell. */
static struct {
	volatile uint64_t rounds[WORKERS];
	volatile uint64_t sums[WORKERS];
	volatile int end;
	volatile int wrong;
} *shared;

static void wrong(const char *format, ...)
{
	char line[256];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	shared->wrong = 1;
	dprintf(1, "wrong %.*s: %s\n", len, line, strerror(errno));
}

/* What round `n` adds to the sum. */
static uint64_t part(uint64_t n)
{
	return (n ^ n << 7) * 0x9e3779b97f4a7c15;
}

static void pipes(uint64_t n)
{
	uint64_t sent[16], got[16];
	int fds[2];

	for (int i = 0; i < 16; i++)
		sent[i] = part(n + i);
	if (pipe(fds)) {
		wrong("pipe");
		return;
	}
	if (write(fds[1], sent, sizeof(sent)) != sizeof(sent) ||
	    read(fds[0], got, sizeof(got)) != sizeof(got) || memcmp(sent, got, sizeof(got)))
		wrong("pipe's content in round %lu", n);
	if (close(fds[0]) || close(fds[1]))
		wrong("close");
}

static void files(void)
{
	char version[32];
	int fd = open("/proc/sys/kernel/ostype", O_RDONLY);

	if (fd < 0 || read(fd, version, sizeof(version)) != 6 || memcmp(version, "Linux\n", 6))
		wrong("ostype");
	close(fd);
	if (open("/does/not/exist", O_RDONLY) >= 0 || errno != ENOENT)
		wrong("a file that does not exist");
}

static void memory(uint64_t n)
{
	const size_t len = 8 * 4096;
	volatile uint64_t *pages =
		mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (pages == MAP_FAILED) {
		wrong("mmap");
		return;
	}
	for (size_t i = 0; i < len / 8; i += 64)
		pages[i] = part(n + i);
	for (size_t i = 0; i < len / 8; i++)
		if (pages[i] != (i % 64 ? 0 : part(n + i)))
			wrong("page in round %lu", n);
	if (munmap((void *)pages, len))
		wrong("munmap");
}

static void child(uint64_t n)
{
	int code = n % 100, status;
	pid_t pid = fork();

	if (!pid)
		_exit(code);
	if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFEXITED(status) ||
	    WEXITSTATUS(status) != code)
		wrong("child in round %lu", n);
}

static void work(int worker)
{
	uint64_t n, sum = 0;

	for (n = 0; !shared->end; n++) {
		if (getppid() == 1)
			_exit(0);
		pipes(n);
		files();
		if (n % 8 == 0)
			memory(n);
		if (n % 32 == 0)
			child(n);
		sum += part(n);
		shared->sums[worker] = sum;
		shared->rounds[worker] = n + 1;
	}
	_exit(0);
}

int main(void)
{
	struct pollfd input = { .fd = 0, .events = POLLIN };
	uint64_t said = 0;
	char end;

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < WORKERS; i++)
		if (!fork())
			work(i);
	do {
		uint64_t least = UINT64_MAX;

		for (int i = 0; i < WORKERS; i++)
			if (shared->rounds[i] < least)
				least = shared->rounds[i];
		if (least > said)
			dprintf(1, "tick %lu\n", said = least);
	} while (poll(&input, 1, 20) == 0 || read(0, &end, 1) > 0);
	shared->end = 1;
	for (int i = 0; i < WORKERS; i++)
		wait(NULL);
	for (int i = 0; i < WORKERS; i++) {
		uint64_t sum = 0;

		for (uint64_t n = 0; n < shared->rounds[i]; n++)
			sum += part(n);
		if (sum != shared->sums[i])
			wrong("sum of worker %d", i);
	}
	if (!shared->wrong)
		dprintf(1, "right\n");
	return shared->wrong;
}
