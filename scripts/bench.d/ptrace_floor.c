/*
 * Prints how many times per second a tracer can be told of a stop and let the
 * thread go on: what no debugger of this host can be quicker than.
 *
 * The child traps on one instruction after the other; the parent does nothing
 * but wait and continue.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STOPS = 100000 };

int main(void)
{
	struct timespec a, b;
	int status;
	pid_t child = fork();

	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		for (;;)
			__asm__ volatile("int3");
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		return 1;
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (int i = 0; i < STOPS; i++) {
		if (ptrace(PTRACE_CONT, child, 0, 0) || waitpid(child, &status, 0) != child ||
		    !WIFSTOPPED(status))
			return 1;
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	kill(child, SIGKILL);
	printf("%.0f\n", STOPS / ((b.tv_sec - a.tv_sec) + (b.tv_nsec - a.tv_nsec) / 1e9));
	return 0;
}
