"""How containers are really run: pyrunc, a shim on runc, crun or any OCI runtime.

The service layer (service.py, options.py) speaks protobuf; everything below knows processes and files only.
"""
