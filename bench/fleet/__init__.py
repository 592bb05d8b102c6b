"""A fleet on one machine: its hosts are processes that ask a real etcd of three members, and nothing else."""
