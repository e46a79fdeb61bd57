/* What tests/gdbserver_forks.rs debugs: a child, one that has its parent's memory, and as many of both as it is told. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int counter;

__attribute__((noinline)) int tick(int by)
{
	counter += by;
	return counter;
}

__attribute__((noinline)) void in_child(volatile int code)
{
	_exit(code);
}

/* How a child has ended: its code, or minus the signal. */
static int outcome(pid_t pid)
{
	int status = 0;

	waitpid(pid, &status, 0);
	return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void *fork_many(void *argument)
{
	long killed = 0, many = *(int *)argument;

	for (int i = 0; i < many; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			tick(1);
			_exit(0);
		}
		killed += outcome(pid) != 0;
	}
	return (void *)killed;
}

static void *vfork_many(void *argument)
{
	long killed = 0, many = *(int *)argument;

	for (int i = 0; i < many; i++) {
		pid_t pid = vfork();

		if (pid == 0)
			_exit(tick(0) < 0);
		killed += outcome(pid) != 0;
	}
	return (void *)killed;
}

int main(int argc, char **argv)
{
	pthread_t threads[2];
	void *forked, *vforked;
	int many;
	pid_t pid;

	if (argc > 2)
		in_child(9);
	if (argc > 1) {
		many = atoi(argv[1]);
		pthread_create(&threads[0], NULL, fork_many, &many);
		pthread_create(&threads[1], NULL, vfork_many, &many);
		for (int i = 0; i < many; i++)
			tick(1);
		pthread_join(threads[0], &forked);
		pthread_join(threads[1], &vforked);
		printf("killed %ld %ld\n", (long)forked, (long)vforked);
		return 0;
	}
	pid = fork();
	if (pid == 0)
		in_child(7);
	printf("child %d\n", outcome(pid));
	fflush(stdout);
	pid = vfork();
	if (pid == 0) {
		execl(argv[0], argv[0], "be", "another", NULL);
		_exit(1);
	}
	printf("another %d\n", outcome(pid));
	return 0;
}
