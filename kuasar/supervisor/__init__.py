"""supervisord's plugin, the zygote that workers and agents are forked from, and the clients of both."""
