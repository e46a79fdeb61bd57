// SPDX-License-Identifier: GPL-2.0
/*
 * Code that comes and goes: an init function, one that runs when its parameter is written, an exit
 * function.
 */
#include <linux/module.h>
#include <linux/moduleparam.h>

static int kscope_visits_count = 40;
static int kscope_visits_last;

static noinline int kscope_visits_poke(int amount)
{
	kscope_visits_count += amount;
	barrier();
	return kscope_visits_count;
}

static int kscope_visits_set(const char *text, const struct kernel_param *parameter)
{
	int amount;
	int error = kstrtoint(text, 0, &amount);

	if (!error)
		kscope_visits_last = kscope_visits_poke(amount);
	return error;
}

static const struct kernel_param_ops kscope_visits_ops = {
	.set = kscope_visits_set,
	.get = param_get_int,
};
module_param_cb(poke, &kscope_visits_ops, &kscope_visits_last, 0644);

static int __init kscope_visits_init(void)
{
	kscope_visits_count++;
	return 0;
}
module_init(kscope_visits_init);

static void __exit kscope_visits_exit(void)
{
	kscope_visits_count = 0;
}
module_exit(kscope_visits_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Code that comes and goes");
