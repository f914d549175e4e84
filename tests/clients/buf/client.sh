#!/usr/bin/env bash
# Calls a graph with nothing but an address: `buf curl` asks the entry by reflection what it serves. client.sh 127.0.0.1:50051
set -uo pipefail
call() { buf curl --protocol grpc --http2-prior-knowledge --data "$2" "http://$1"; }
echo=$1/services.echo.v1.Echo

call "$echo/Say" '{"text": "hello", "tags": ["from", "buf"]}'

# A tensor of two 32-bit floats, 1.5 and -2; bytes are base64 in protobuf's JSON.
image='{"pixels": {"dtype": "FLOAT32", "shape": [2], "data": "AADAPwAAAMA="}}'
call "$echo/Reflect" "$image"

call "$echo/Repeat" '{"text": "again", "times": 3}'

# An error is JSON on standard error, and the exit status is 8 times its code.
call "$echo/Say" '{}'
