/* What tests/gdbserver_modes.rs attaches to: it counts in two threads until it is told to stop, or for two minutes. */
#include <pthread.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

volatile unsigned long count;
volatile int stop;

__attribute__((noinline)) void tick(void)
{
	__atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
}

static void *counting(void *argument)
{
	while (!stop) {
		tick();
		usleep(1000);
	}
	return argument;
}

int main(void)
{
	pthread_t other;

	/* A debugger is not its parent. */
	prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
	alarm(120);
	pthread_create(&other, NULL, counting, NULL);
	printf("ready\n");
	fflush(stdout);
	counting(NULL);
	pthread_join(other, NULL);
	printf("stopped\n");
	return 3;
}
