"""Fusis: the control plane of an IPVS load balancer: the daemon, the real server's agent, the operator's command."""
