"""Serf: the RPC protocol without I/O, an asyncio client, and a supervisor of the agent.

Usable on its own:

    import asyncio
    from fusisd.serf.client import SerfClient

    async def main() -> None:
        client = SerfClient("127.0.0.1", 7373)
        await client.connect()
        for member in await client.members():
            print(member.name, member.address, member.status)
        await client.close()

    asyncio.run(main())
"""
