"""Whether every process of the job gives signs of life, and where one stands that does not.

Each rank and engine writes a pulse, a small file, every few seconds; the driver compares what it reads with what it
waits for. Nothing here imports torch, and Ray only where a stack is fetched from another node.
"""
