"""The real server's side: keeps a Serf agent whose tags offer this server's service to the balancers."""
