/* Calls that do not return, return twice, or end the program. */
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include "shared.h"

static jmp_buf where;

static void give_up(int n)
{
	if (n > 2)
		longjmp(where, n);
	if (n < 0)
		abort();
}

static int attempt(int n)
{
	int result = setjmp(where);
	if (result)
		return result;
	give_up(n);
	return shared(n);
}

DEFINE(first) DEFINE(second) int third(int n) { return first(n) ? second(n) : 0; }

static void __attribute__((noreturn)) finish(int s)
{
	printf("%d\n", s);
	exit(0);
}

int main(void)
{
	int s = 0;
	for (int i = 0; i < 5; i++)
		s += attempt(i) + third(i - 1);
	if (s > 1000)
		return 1;
	finish(s);
}
