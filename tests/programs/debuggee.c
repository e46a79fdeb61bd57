/* What tests/gdbserver.rs debugs: a counter, a signal, threads, a child, and an exit code. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

volatile int counter;
volatile int handled;
volatile int shared;

static void on_signal(int signal)
{
	handled = signal;
}

__attribute__((noinline)) int tick(int by)
{
	counter += by;
	return counter;
}

static void *work(void *argument)
{
	for (int i = 0; i < 100; i++)
		__atomic_fetch_add(&shared, 1, __ATOMIC_SEQ_CST);
	return argument;
}

__attribute__((noinline)) void joined(void)
{
	__asm__ volatile("");
}

int main(int argc, char **argv)
{
	pthread_t threads[3];
	int status = 0, borrowed = 0;

	signal(SIGUSR1, on_signal);
	for (int i = 0; i < 1000; i++)
		tick(1);
	raise(SIGUSR1);
	for (int i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, work, NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	joined();
	/* Runs into what would be breakpoints, were they not taken out of it. */
	if (fork() == 0)
		_exit(tick(1) == 1001 ? 7 : 1);
	wait(&status);
	/* Has this memory as long as it lives. */
	if (vfork() == 0)
		_exit(5 + 0 * tick(0));
	wait(&borrowed);
	printf("argc %d, last %s, children %d %d, handled %d\n", argc,
	       argv[argc - 1], WEXITSTATUS(status), WEXITSTATUS(borrowed), handled);
	return 3;
}
