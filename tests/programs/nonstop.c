/* What tests/nonstop.rs debugs: a thread that counts, one that comes by here(), and main(), which waits for them. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

volatile unsigned long count;
volatile int stop;

static void *counting(void *argument)
{
	do {
		count++;
		usleep(1000);
	} while (!stop);
	return argument;
}

__attribute__((noinline)) void here(int round)
{
	__asm__ volatile("nop" : : "r"(round));
}

static void *passing(void *argument)
{
	for (int round = 0; round < 2; round++)
		here(round);
	return argument;
}

int main(void)
{
	pthread_t counter, passer;

	pthread_create(&counter, NULL, counting, NULL);
	pthread_create(&passer, NULL, passing, NULL);
	pthread_join(passer, NULL);
	stop = 1;
	pthread_join(counter, NULL);
	printf("counted: %d\n", count > 0);
	return 3;
}
