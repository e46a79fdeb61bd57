/* A family of processes that sleep in every way, for `kscope ps` to list. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int quiet[2];

static void *blocked(void *mutex)
{
	prctl(PR_SET_NAME, "blocked");
	pthread_mutex_lock(mutex);
	return NULL;
}

static void *reading(void *unused)
{
	char c;

	prctl(PR_SET_NAME, "reading");
	if (read(quiet[0], &c, 1) < 0)
		return NULL;
	return unused;
}

/* Runs for a while and is gone. */
static void *brief(void *unused)
{
	struct timespec now;

	do {
		if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now))
			return unused;
	} while (now.tv_sec == 0 && now.tv_nsec < 50 * 1000 * 1000);
	return NULL;
}

/* A child that goes on by itself. */
static void child(void (*what)(char **), char **argv)
{
	if (fork() == 0) {
		what(argv);
		_exit(1);
	}
}

static void ended(char **argv)
{
	(void)argv;
	_exit(3);
}

static void polling(char **argv)
{
	struct pollfd fd = { .fd = quiet[0], .events = POLLIN };

	(void)argv;
	if (setgid(20001) || setresuid(20000, 20001, 20002))
		return;
	poll(&fd, 1, -1);
}

static void stopped(char **argv)
{
	(void)argv;
	raise(SIGSTOP);
}

/* As setproctitle(3): over the arguments, and on into the environment. */
static void titled(char **argv)
{
	size_t room = 0;
	char *title = "a title of one's own, longer than what was there before it";
	int i;

	prctl(PR_SET_NAME, "titled");
	for (i = 0; argv[i]; i++)
		room += strlen(argv[i]) + 1;
	if (strlen(title) <= room)
		abort();
	memset(argv[0], 0, room);
	strcpy(argv[0], title);
	pause();
}

static void vforked(char **argv)
{
	(void)argv;
	if (vfork() == 0) {
		sleep(100000);
		_exit(0);
	}
}

static void busy(char **argv)
{
	(void)argv;
	prctl(PR_SET_NAME, "a \"b\" (c)");
	if (fork() == 0)
		_exit(0);
	wait(NULL);
	pause();
}

int main(int argc, char **argv)
{
	static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
	static sem_t never;
	pthread_t thread;

	(void)argc;
	if (pipe(quiet))
		return 1;
	child(ended, argv);
	child(polling, argv);
	child(stopped, argv);
	child(titled, argv);
	child(vforked, argv);
	child(busy, argv);
	if (pthread_create(&thread, NULL, brief, NULL) ||
	    pthread_join(thread, NULL))
		return 1;
	pthread_mutex_lock(&mutex);
	if (pthread_create(&thread, NULL, blocked, &mutex) ||
	    pthread_create(&thread, NULL, reading, NULL))
		return 1;
	sem_wait(&never);
	return 0;
}
