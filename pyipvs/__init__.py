"""pyipvs: the Linux kernel's load balancer IPVS, from Python, over generic netlink.

>>> from pyipvs import IPVS
>>> from pyipvs.testing import FakeKernel  # leave it out to speak to the real kernel, as root
>>> ipvs = IPVS(transport=FakeKernel())
>>> ipvs.add_service("tcp/10.0.0.1:80", scheduler="rr", persistence_s=300)
>>> ipvs.add_destination("tcp/10.0.0.1:80", "10.0.0.2:80", method="route")
>>> ipvs.add_destination("tcp/10.0.0.1:80", "10.0.0.3:80", method="route", weight=2)
>>> ipvs.services()
SERVICE          SCHEDULER  FLAGS            CONNS  PKTS-IN  PKTS-OUT  BYTES-IN  BYTES-OUT
tcp/10.0.0.1:80  rr         persistent 300s      0        0         0         0          0
>>> ipvs.destinations("tcp/10.0.0.1:80")
DESTINATION  METHOD  WEIGHT  ACTIVE  INACTIVE  CONNS  BYTES-IN  BYTES-OUT
10.0.0.3:80  route        2       0         0      0         0          0
10.0.0.2:80  route        1       0         0      0         0          0
>>> ipvs.update_destination("tcp/10.0.0.1:80", "10.0.0.3:80", weight=0)
>>> ipvs.delete_service("udp/[fd00::1]:53")
Traceback (most recent call last):
pyipvs.errors.ServiceNotFound: delete service udp/[fd00::1]:53: no such service (ESRCH)

Needs libnl-3 and libnl-genl-3 at run time (Debian: libnl-3-200 libnl-genl-3-200) and CAP_NET_ADMIN.
Does not: run ipvsadm or modprobe, keep a copy of the kernel's table, or log.
"""

from pyipvs.changes import (
    AddDestination,
    AddService,
    BatchError,
    Change,
    ChangeList,
    DeleteDestination,
    DeleteService,
    Failure,
    UpdateDestination,
    UpdateService,
)
from pyipvs.client import IPVS
from pyipvs.daemons import Daemon, DaemonState
from pyipvs.errors import (
    AlreadyExists,
    DaemonNotFound,
    DecodeError,
    DestinationNotFound,
    IPVSError,
    LibraryMissing,
    ModuleMissing,
    PermissionDenied,
    SchedulerNotFound,
    ServiceNotFound,
    TimedOut,
)
from pyipvs.model import (
    Destination,
    DestinationStatus,
    Family,
    ForwardingMethod,
    Protocol,
    Service,
    ServiceFlags,
    ServiceKey,
    ServiceStatus,
    Stats,
    Timeouts,
    Tunnel,
    TunnelType,
)
from pyipvs.netns import network_namespace
from pyipvs.procfs import (
    Connection,
    CpuStatistics,
    TableProbe,
    connections,
    cpu_statistics,
    set_sysctl,
    sysctl,
    sysctls,
)
from pyipvs.ruleset import Ruleset, diff
from pyipvs.savefile import SaveFileError
from pyipvs.watch import Rates, Sample

__all__ = [
    "IPVS",
    "AddDestination",
    "AddService",
    "AlreadyExists",
    "BatchError",
    "Change",
    "ChangeList",
    "Connection",
    "CpuStatistics",
    "Daemon",
    "DaemonNotFound",
    "DaemonState",
    "DecodeError",
    "DeleteDestination",
    "DeleteService",
    "Destination",
    "DestinationNotFound",
    "DestinationStatus",
    "Failure",
    "Family",
    "ForwardingMethod",
    "IPVSError",
    "LibraryMissing",
    "ModuleMissing",
    "PermissionDenied",
    "Protocol",
    "Rates",
    "Ruleset",
    "Sample",
    "SaveFileError",
    "SchedulerNotFound",
    "Service",
    "ServiceFlags",
    "ServiceKey",
    "ServiceNotFound",
    "ServiceStatus",
    "Stats",
    "TableProbe",
    "TimedOut",
    "Timeouts",
    "Tunnel",
    "TunnelType",
    "UpdateDestination",
    "UpdateService",
    "connections",
    "cpu_statistics",
    "diff",
    "network_namespace",
    "set_sysctl",
    "sysctl",
    "sysctls",
]
