/*
 * Processes that block in the depth of all sorts of stacks, and say first what glibc's
 * backtrace() finds there:
 *
 *	trace NAME TID
 *	FILE(FUNCTION+0xOFFSET)[0xADDRESS]	the caller of block(), and so on
 *	end
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

#define NOINLINE __attribute__((noinline))

static int quiet[2], done[2];

/* What is behind a call makes that no jump. */
static volatile int behind;

static const char *name;

NOINLINE void block(void)
{
	void *frames[64];
	char line[64], c = 0;
	int depth = backtrace(frames, 64);
	int len = snprintf(line, sizeof(line), "trace %s %d\n", name, gettid());

	if (write(1, line, len) != len)
		abort();
	backtrace_symbols_fd(frames + 1, depth - 1, 1);
	if (write(1, "end\n", 4) != 4 || write(done[1], &c, 1) != 1)
		abort();
	if (read(quiet[0], &c, 1) >= 0)
		abort();
	behind++;
}

NOINLINE void descend(int more)
{
	if (more)
		descend(more - 1);
	else
		block();
	behind++;
}

static void recursion(void)
{
	descend(5);
	behind++;
}

int compare(const void *a, const void *b)
{
	block();
	behind++;
	return *(const char *)a - *(const char *)b;
}

/* Through libc. */
static void callback(void)
{
	char letters[] = "ba";

	qsort(letters, 2, 1, compare);
	behind += letters[0];
}

void handler(int signal)
{
	descend(1);
	behind = signal;
}

static void signalled(void)
{
	signal(SIGUSR1, handler);
	raise(SIGUSR1);
	behind++;
}

/* Amid code, on a stack of its own. */
static void interrupted(void)
{
	static int *volatile nowhere = (int *)8;
	static char other[1 << 16];
	stack_t stack = { .ss_sp = other, .ss_size = sizeof(other) };
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_ONSTACK };

	if (sigaltstack(&stack, NULL) || sigaction(SIGSEGV, &action, NULL))
		abort();
	*nowhere = 1;
	behind++;
}

NOINLINE void grow(int size)
{
	volatile char *room = alloca(size);

	room[size - 1] = 1;
	block();
	behind += room[0];
}

NOINLINE void align(int size)
{
	volatile char room[256] __attribute__((aligned(128)));

	room[size] = 1;
	grow(size);
	behind += room[size];
}

/* Where the frame is not a fixed distance from the stack pointer. */
static void sizes(void)
{
	align(100 + (getpid() & 1));
	behind++;
}

void *thread(void *unused)
{
	descend(2);
	behind++;
	return unused;
}

static void threads(void)
{
	pthread_t id;

	if (pthread_create(&id, NULL, thread, NULL))
		abort();
	pthread_join(id, NULL);
}

int main(void)
{
	static const struct {
		const char *name;
		void (*what)(void);
	} all[] = {
		{ "recursion", recursion },	{ "callback", callback }, { "signalled", signalled },
		{ "interrupted", interrupted }, { "sizes", sizes },	  { "threads", threads },
	};
	void *warm[1];
	unsigned int at;
	char c;

	/* It loads a library, once. */
	backtrace(warm, 1);
	if (pipe(quiet) || pipe(done))
		return 1;
	for (at = 0; at < sizeof(all) / sizeof(all[0]); at++) {
		if (fork() == 0) {
			name = all[at].name;
			all[at].what();
			_exit(1);
		}
		/* One after the other, so that their lines do not mix. */
		if (read(done[0], &c, 1) != 1)
			return 1;
	}
	return 0;
}
