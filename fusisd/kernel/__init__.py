"""The room of everything that touches this host's kernel: IPVS, addresses, announcements, NAT, sysctls."""
