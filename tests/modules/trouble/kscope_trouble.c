// SPDX-License-Identifier: GPL-2.0
/*
 * Trouble of the kind that its parameter names, as soon as it is loaded.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/slab.h>
#include <linux/string.h>

static char *kind = "";
module_param(kind, charp, 0);

static DEFINE_MUTEX(kscope_trouble_mutex);
static DEFINE_MUTEX(kscope_trouble_other);

/* For a debugger to change. */
static int kscope_trouble_lasts = 1;

/* Two locks in one order and in the other. */
static noinline void kscope_trouble_lock(struct mutex *first, struct mutex *second)
{
	mutex_lock(first);
	mutex_lock(second);
	mutex_unlock(second);
	mutex_unlock(first);
}

/* The byte behind an object. */
static noinline void kscope_trouble_write(void)
{
	char *object = kmalloc(13, GFP_KERNEL);

	if (object)
		WRITE_ONCE(*(object + 13), 1);
	kfree(object);
}

/* A CPU that does nothing else any more. */
static noinline void kscope_trouble_spin(void)
{
	preempt_disable();
	while (READ_ONCE(kscope_trouble_lasts))
		cpu_relax();
	preempt_enable();
}

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
	if (!strcmp(kind, "lockdep")) {
		kscope_trouble_lock(&kscope_trouble_mutex, &kscope_trouble_other);
		kscope_trouble_lock(&kscope_trouble_other, &kscope_trouble_mutex);
	}
	if (!strcmp(kind, "kasan"))
		kscope_trouble_write();
	if (!strcmp(kind, "rcu-stall"))
		kscope_trouble_spin();
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
