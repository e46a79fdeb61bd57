// SPDX-License-Identifier: GPL-2.0
/*
 * Trouble of the kind that its parameter names, as soon as it is loaded.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>

static char *kind = "";
module_param(kind, charp, 0);

static DEFINE_MUTEX(kscope_trouble_mutex);

static noinline void kscope_cause_trouble(void)
{
	if (!strcmp(kind, "warn"))
		WARN(1, "kscope warns of %s %d\n", kind, 42);
	if (!strcmp(kind, "bug"))
		BUG();
	if (!strcmp(kind, "oops"))
		WRITE_ONCE(*(volatile int *)8, 1);
	if (!strcmp(kind, "panic"))
		panic("kscope panics: %s, %d, %#lx", kind, -42, 0x1234567890UL);
	if (!strcmp(kind, "hung-task")) {
		mutex_lock(&kscope_trouble_mutex);
		mutex_lock(&kscope_trouble_mutex);
	}
}

static int __init kscope_trouble_init(void)
{
	kscope_cause_trouble();
	/* Not to be loaded. */
	return -ECANCELED;
}
module_init(kscope_trouble_init);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Trouble to look at");
