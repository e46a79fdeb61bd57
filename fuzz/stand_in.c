/* A process in place of a guest: the kernel of kernel/tests/stand_in, which runs a step for each byte that it is sent.
 * A debugger can have it execute anything, so the host's kernel allows it next to nothing. */
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define main layouts
#include "../kernel/tests/stand_in/kernel/init/init_task.c"
#undef main

__attribute__((noinline)) int step(int n)
{
	return linux_main(n);
}

int main(void)
{
	char byte;
	int sum = 0;

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
		_exit(1);
	/* In the strict mode there is read, write and exit, and nothing else. */
	while (read(0, &byte, 1) == 1)
		sum += step(byte);
	return sum;
}
