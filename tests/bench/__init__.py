"""How fast pyipvs is beside ipvsadm, pyroute2, one libnl call per attribute, and a C program at the limit."""
