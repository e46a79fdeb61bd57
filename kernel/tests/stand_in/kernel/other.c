/*
 * Has its own variable of a name that another file has, too.
 */
static int twice = 2;

int other(void)
{
	return twice++;
}
