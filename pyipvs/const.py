"""Numbers of the kernel's IPVS interface, as <linux/ip_vs.h> has them.

Each class is headed by the enum or prefix it mirrors; a test compares every value with the header.
Does not: know how an attribute is encoded (wire.py does).
"""

from __future__ import annotations

from enum import IntEnum

GENL_NAME = "IPVS"  # IPVS_GENL_NAME
GENL_VERSION = 1  # IPVS_GENL_VERSION
NAME_MAX = 16  # IP_VS_SCHEDNAME_MAXLEN and IP_VS_PENAME_MAXLEN, with the NUL
FWD_MASK = 0x0007  # IP_VS_CONN_F_FWD_MASK


class Command(IntEnum):
    """enum IPVS_CMD_*: generic netlink commands."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DEL_SERVICE = 3
    GET_SERVICE = 4
    NEW_DEST = 5
    SET_DEST = 6
    DEL_DEST = 7
    GET_DEST = 8
    NEW_DAEMON = 9
    DEL_DAEMON = 10
    GET_DAEMON = 11
    SET_CONFIG = 12
    GET_CONFIG = 13
    SET_INFO = 14
    GET_INFO = 15
    ZERO = 16
    FLUSH = 17


class CmdAttr(IntEnum):
    """enum IPVS_CMD_ATTR_*: attributes of the first level."""

    SERVICE = 1
    DEST = 2
    DAEMON = 3
    TIMEOUT_TCP = 4
    TIMEOUT_TCP_FIN = 5
    TIMEOUT_UDP = 6


class SvcAttr(IntEnum):
    """enum IPVS_SVC_ATTR_*: a virtual service."""

    AF = 1
    PROTOCOL = 2
    ADDR = 3
    PORT = 4
    FWMARK = 5
    SCHED_NAME = 6
    FLAGS = 7
    TIMEOUT = 8
    NETMASK = 9
    STATS = 10
    PE_NAME = 11
    STATS64 = 12


class DestAttr(IntEnum):
    """enum IPVS_DEST_ATTR_*: a destination."""

    ADDR = 1
    PORT = 2
    FWD_METHOD = 3
    WEIGHT = 4
    U_THRESH = 5
    L_THRESH = 6
    ACTIVE_CONNS = 7
    INACT_CONNS = 8
    PERSIST_CONNS = 9
    STATS = 10
    ADDR_FAMILY = 11
    STATS64 = 12
    TUN_TYPE = 13
    TUN_PORT = 14
    TUN_FLAGS = 15


class StatsAttr(IntEnum):
    """enum IPVS_STATS_ATTR_*: counters and rates of a service or destination."""

    CONNS = 1
    INPKTS = 2
    OUTPKTS = 3
    INBYTES = 4
    OUTBYTES = 5
    CPS = 6
    INPPS = 7
    OUTPPS = 8
    INBPS = 9
    OUTBPS = 10
    PAD = 11


class DaemonAttr(IntEnum):
    """enum IPVS_DAEMON_ATTR_*: a synchronization daemon."""

    STATE = 1
    MCAST_IFN = 2
    SYNC_ID = 3
    SYNC_MAXLEN = 4
    MCAST_GROUP = 5
    MCAST_GROUP6 = 6
    MCAST_PORT = 7
    MCAST_TTL = 8


class InfoAttr(IntEnum):
    """enum IPVS_INFO_ATTR_*: the reply to GET_INFO."""

    VERSION = 1
    CONN_TAB_SIZE = 2


class SvcFlag(IntEnum):
    """IP_VS_SVC_F_*: the u32 flags of a service."""

    PERSISTENT = 0x0001
    HASHED = 0x0002
    ONEPACKET = 0x0004
    SCHED1 = 0x0008
    SCHED2 = 0x0010
    SCHED3 = 0x0020
