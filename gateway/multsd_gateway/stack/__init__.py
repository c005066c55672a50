"""The local stack: a real Triton server from a wheel, and the gateway, as child processes on loopback.

For development and tests. The wheel's Triton is older than its security fixes: it is never reachable from outside.
"""
