/*
 * Processes that wait for something, one after the other as they are asked for:
 *
 *	waits MODE...
 *
 * Each is a child of its own, called MODE as far as 15 bytes go, and says a line of what it knows
 * about itself: `MODE PID key=value ...`. When all of them wait, `ready` is said. `insmod:FILE`
 * loads a module instead.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void say(const char *format, ...)
{
	char line[512];
	va_list args;
	int len;

	va_start(args, format);
	len = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	/* One write: lines of several processes stay whole. */
	if (write(1, line, len) != len)
		_exit(1);
}

static int tid(void)
{
	return syscall(SYS_gettid);
}

static void name(const char *text)
{
	prctl(PR_SET_NAME, text);
}

static pthread_mutex_t a = PTHREAD_MUTEX_INITIALIZER, b = PTHREAD_MUTEX_INITIALIZER;
static pthread_barrier_t both;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

static void *b_then_a(void *unused)
{
	name("b-then-a");
	pthread_mutex_lock(&b);
	say("b-then-a %d wants=%p owner=%d\n", tid(), &a, getpid());
	pthread_barrier_wait(&both);
	pthread_mutex_lock(&a);
	return unused;
}

static void two_mutexes(const char *mode)
{
	pthread_t thread;

	pthread_barrier_init(&both, NULL, 2);
	pthread_mutex_lock(&a);
	pthread_create(&thread, NULL, b_then_a, NULL);
	pthread_barrier_wait(&both);
	say("%s %d wants=%p\n", mode, getpid(), &b);
	pthread_mutex_lock(&b);
}

/* The main thread keeps the mutex and sleeps; the other one waits for it. */
static void *wants_a(void *unused)
{
	name("wants-pi");
	say("wants-pi %d wants=%p owner=%d\n", tid(), &a, getpid());
	pthread_mutex_lock(&a);
	return unused;
}

static void pi_mutex(void)
{
	pthread_mutexattr_t attributes;
	pthread_t thread;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&a, &attributes);
	pthread_mutex_lock(&a);
	pthread_create(&thread, NULL, wants_a, NULL);
	say("pi-mutex %d\n", getpid());
	pause();
}

static void *joined(void *unused)
{
	name("joined");
	say("joined %d\n", tid());
	pause();
	return unused;
}

static void join(void)
{
	pthread_t thread;

	say("join %d\n", getpid());
	pthread_create(&thread, NULL, joined, NULL);
	pthread_join(thread, NULL);
}

static void condition(void)
{
	say("condition %d\n", getpid());
	pthread_mutex_lock(&a);
	pthread_cond_wait(&never, &a);
}

static void futex(const char *mode, int flags, int kind)
{
	uint32_t *word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | kind, -1, 0);
	struct timespec hours = { .tv_sec = 36000 };

	word[3] = 77;
	say("%s %d uaddr=%p\n", mode, getpid(), &word[3]);
	syscall(SYS_futex, &word[3], FUTEX_WAIT | flags, 77, flags ? &hours : NULL, NULL, 0);
}

static void futex_waitv(void)
{
	static uint32_t words[2];
	struct { uint64_t val, uaddr; uint32_t flags, reserved; } waiters[2] = {
		{ 0, (uintptr_t)&words[0], 2 | 128, 0 }, { 0, (uintptr_t)&words[1], 2 | 128, 0 },
	};

	say("futex-waitv %d uaddr=%p\n", getpid(), &words[0]);
	syscall(449, waiters, 2, 0, NULL, 0);
}

/* The child has the other end and sleeps. */
static void pipe_with_child(const char *mode, int reads)
{
	char bytes[4096] = "";
	struct stat stat;
	int ends[2], child;

	if (pipe(ends))
		_exit(1);
	child = fork();
	if (!child) {
		name(reads ? "pipe-writer" : "pipe-reader");
		close(ends[!reads]);
		pause();
	}
	close(ends[reads]);
	fstat(ends[!reads], &stat);
	say("%s %d fd=%d other=%d inode=%lu\n", mode, getpid(), ends[!reads], child,
	    (unsigned long)stat.st_ino);
	if (reads)
		while (read(ends[0], bytes, sizeof(bytes)) >= 0)
			;
	while (write(ends[1], bytes, sizeof(bytes)) >= 0)
		;
}

/* Whoever forgets to close the writing end waits for itself. */
static void pipe_self(void)
{
	char byte;
	int ends[2];

	if (pipe(ends))
		_exit(1);
	say("pipe-self %d\n", getpid());
	if (read(ends[0], &byte, 1))
		_exit(1);
}

/* A parent that waits for a child that waits for the parent to read. */
static void pipe_and_wait(void)
{
	char bytes[4096] = "";
	int ends[2], child;

	if (pipe(ends))
		_exit(1);
	child = fork();
	if (!child) {
		name("full-pipe");
		close(ends[0]);
		while (write(ends[1], bytes, sizeof(bytes)) >= 0)
			;
	}
	close(ends[1]);
	say("pipe-and-wait %d child=%d\n", getpid(), child);
	waitpid(child, NULL, 0);
}

static void fifo(void)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/fifo.%d", getpid());
	mkfifo(path, 0600);
	say("fifo %d\n", getpid());
	open(path, O_RDONLY);
}

static void poll_three(const char *mode)
{
	int ends[2], sockets[2], epoll;
	struct epoll_event event = { .events = EPOLLIN };
	fd_set set;

	if (pipe(ends) || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		_exit(1);
	say("%s %d fds=%d,%d\n", mode, getpid(), ends[0], sockets[0]);
	if (!strcmp(mode, "poll")) {
		struct pollfd fds[2] = {
			{ .fd = ends[0], .events = POLLIN },
			{ .fd = sockets[0], .events = POLLIN },
		};

		poll(fds, 2, -1);
	} else if (!strcmp(mode, "select")) {
		FD_ZERO(&set);
		FD_SET(ends[0], &set);
		FD_SET(sockets[0], &set);
		select(sockets[0] + 1, &set, NULL, NULL, NULL);
	} else {
		epoll = epoll_create1(0);
		epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event);
		epoll_ctl(epoll, EPOLL_CTL_ADD, sockets[0], &event);
		epoll_wait(epoll, &event, 1, 36000000);
	}
}

static void children(const char *mode, int which)
{
	int child[2], at;

	for (at = 0; at < 2; at++) {
		child[at] = fork();
		if (!child[at]) {
			name("child");
			pause();
		}
	}
	say("%s %d children=%d,%d\n", mode, getpid(), child[0], child[1]);
	waitpid(which ? child[0] : -1, NULL, 0);
}

static void vfork_child(void)
{
	static char stack[65536];
	extern int vfork_sleep(void *);

	say("vfork %d\n", getpid());
	clone(vfork_sleep, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
}

int vfork_sleep(void *unused)
{
	name("vforked");
	say("vforked %d\n", tid());
	pause();
	return unused != NULL;
}

static void file_lock(const char *mode, int posix)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char path[64];
	int fd, child, ends[2];
	char byte = 0;

	snprintf(path, sizeof(path), "/tmp/lock.%d", getpid());
	if (pipe(ends))
		_exit(1);
	child = fork();
	if (!child)
		name("lock-holder");
	else if (read(ends[0], &byte, 1) != 1)
		_exit(1);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	if (child)
		say("%s %d holder=%d path=%s\n", mode, getpid(), child, path);
	if (posix ? fcntl(fd, F_SETLKW, &whole) : flock(fd, LOCK_EX))
		_exit(1);
	if (write(ends[1], &byte, 1) != 1)
		_exit(1);
	pause();
}

static void message(void)
{
	struct { long type; char text[8]; } got;

	say("message %d\n", getpid());
	msgrcv(msgget(IPC_PRIVATE, 0600), &got, sizeof(got.text), 0, 0);
}

static void semaphore(void)
{
	struct sembuf down = { 0, -1, 0 };

	say("semaphore %d\n", getpid());
	semop(semget(IPC_PRIVATE, 1, 0600), &down, 1);
}

static void socket_read(void)
{
	char byte;
	int sockets[2], child;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets))
		_exit(1);
	child = fork();
	if (!child) {
		name("socket-peer");
		close(sockets[0]);
		pause();
	}
	close(sockets[1]);
	say("socket %d fd=%d other=%d\n", getpid(), sockets[0], child);
	if (read(sockets[0], &byte, 1))
		_exit(1);
}

static void accept_one(void)
{
	struct sockaddr_un name = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	/* An abstract name of the kernel's choice. */
	bind(fd, (struct sockaddr *)&name, sizeof(name.sun_family));
	listen(fd, 1);
	say("accept %d\n", getpid());
	accept(fd, NULL, NULL);
}

static void sleeping(void)
{
	struct timespec hours = { .tv_sec = 36000 };

	say("nanosleep %d\n", getpid());
	nanosleep(&hours, NULL);
}

static void suspended(void)
{
	sigset_t none;

	sigemptyset(&none);
	say("sigsuspend %d\n", getpid());
	sigsuspend(&none);
}

static void wanted_signal(void)
{
	sigset_t set;
	int got;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	say("sigwait %d\n", getpid());
	sigwait(&set, &got);
}

static void stopped(void)
{
	say("stopped %d\n", getpid());
	raise(SIGSTOP);
}

static void load(const char *path)
{
	int fd = open(path, O_RDONLY);

	if (fd < 0 || syscall(SYS_finit_module, fd, "", 0)) {
		perror(path);
		_exit(1);
	}
}

static void start(const char *mode)
{
	name(mode);
	if (!strcmp(mode, "two-mutexes"))
		two_mutexes(mode);
	else if (!strcmp(mode, "pi-mutex"))
		pi_mutex();
	else if (!strcmp(mode, "join"))
		join();
	else if (!strcmp(mode, "condition"))
		condition();
	else if (!strcmp(mode, "futex"))
		futex(mode, FUTEX_PRIVATE_FLAG, MAP_PRIVATE);
	else if (!strcmp(mode, "futex-shared"))
		futex(mode, 0, MAP_SHARED);
	else if (!strcmp(mode, "futex-waitv"))
		futex_waitv();
	else if (!strcmp(mode, "pipe-read"))
		pipe_with_child(mode, 1);
	else if (!strcmp(mode, "pipe-write"))
		pipe_with_child(mode, 0);
	else if (!strcmp(mode, "pipe-self"))
		pipe_self();
	else if (!strcmp(mode, "pipe-and-wait"))
		pipe_and_wait();
	else if (!strcmp(mode, "fifo"))
		fifo();
	else if (!strcmp(mode, "poll") || !strcmp(mode, "select") || !strcmp(mode, "epoll"))
		poll_three(mode);
	else if (!strcmp(mode, "wait-any"))
		children(mode, 0);
	else if (!strcmp(mode, "wait-one"))
		children(mode, 1);
	else if (!strcmp(mode, "vfork"))
		vfork_child();
	else if (!strcmp(mode, "flock"))
		file_lock(mode, 0);
	else if (!strcmp(mode, "posix-lock"))
		file_lock(mode, 1);
	else if (!strcmp(mode, "message"))
		message();
	else if (!strcmp(mode, "semaphore"))
		semaphore();
	else if (!strcmp(mode, "socket"))
		socket_read();
	else if (!strcmp(mode, "accept"))
		accept_one();
	else if (!strcmp(mode, "nanosleep"))
		sleeping();
	else if (!strcmp(mode, "sigsuspend"))
		suspended();
	else if (!strcmp(mode, "sigwait"))
		wanted_signal();
	else if (!strcmp(mode, "stopped"))
		stopped();
	else
		say("%s: no such mode\n", mode);
	/* What should not end has ended. */
	say("%s %d ended errno=%d\n", mode, getpid(), errno);
	_exit(1);
}

/* Whether a task of the process sleeps: its state in /proc. */
static int sleeps(int pid)
{
	char path[64], line[256], *at;
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 1;
	len = read(fd, line, sizeof(line) - 1);
	close(fd);
	line[len > 0 ? len : 0] = 0;
	at = strrchr(line, ')');
	return at && at[1] && strchr("SDTZ", at[2]);
}

int main(int argc, char **argv)
{
	int at, pids[64] = { 0 };

	for (at = 1; at < argc && at < 64; at++) {
		if (!strncmp(argv[at], "insmod:", 7)) {
			load(argv[at] + 7);
			continue;
		}
		pids[at] = fork();
		if (!pids[at])
			start(argv[at]);
	}
	/* Twice asleep, a moment apart: most have arrived by then. Who needs more asks again. */
	for (int round = 0; round < 2; round++) {
		usleep(300000);
		for (at = 1; at < argc && at < 64; at++)
			while (pids[at] && !sleeps(pids[at]))
				usleep(10000);
	}
	say("ready\n");
	pause();
	return 0;
}
