"""A client of the wire format `topic` over WebSocket, written from its description and RFC 6455 alone.

usage: topic.py PORT. Prints `ready` when it has subscribed to `pumps` and waits then for what a backend says there.
"""

import base64
import hashlib
import json
import os
import socket
import sys


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        key = base64.b64encode(os.urandom(16)).decode()
        request = f"GET /message HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        request += f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
        self.socket.sendall(request.encode())
        self.bytes = b""
        head = self.until(b"\r\n\r\n").decode()
        assert head.startswith("HTTP/1.1 101 "), head
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1((key + guid).encode()).digest()).decode()
        assert f"sec-websocket-accept: {accept}" in head.replace("Sec-WebSocket-Accept", "sec-websocket-accept"), head

    def receive(self):
        piece = self.socket.recv(65536)
        assert piece, "the server closed the connection"
        self.bytes += piece

    def until(self, end):
        while end not in self.bytes:
            self.receive()
        head, self.bytes = self.bytes.split(end, 1)
        return head

    def take(self, length):
        while len(self.bytes) < length:
            self.receive()
        taken, self.bytes = self.bytes[:length], self.bytes[length:]
        return taken

    def send_frame(self, opcode, payload, final=True):
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        length = len(payload)
        size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 126]) + length.to_bytes(2, "big")
        self.socket.sendall(bytes([(0x80 if final else 0) | opcode]) + size + mask + masked)

    def read_frame(self):
        first, second = self.take(2)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(self.take(2), "big")
        elif length == 127:
            length = int.from_bytes(self.take(8), "big")
        return first & 0x0F, self.take(length)

    def send(self, action, topic, message=None):
        self.send_frame(1, json.dumps({"action": action, "topic": topic, "message": message}).encode())

    def read(self):
        opcode, payload = self.read_frame()
        assert opcode == 1, (opcode, payload)
        return json.loads(payload)


def publication(topic, message):
    return {"action": "publish", "topic": topic, "message": message}


def expect(client, frame):
    got = client.read()
    assert got == frame, f"expected {frame}, got {got}"


def main(port):
    one, two = Client(port), Client(port)
    for client in (one, two):
        client.send("subscribe", "pumps")
    # A ping is answered after what came before it has been done.
    for client in (one, two):
        client.send_frame(9, b"are you there")
        assert client.read_frame() == (10, b"are you there")

    message = {"speed": 1.50, "text": "grün"}
    one.send("publish", "pumps", message)
    for client in (one, two):
        expect(client, publication("pumps", message))
    long = "x" * 5000
    two.send("publish", "pumps", long)
    for client in (one, two):
        expect(client, publication("pumps", long))
    # In two fragments, with a ping between.
    whole = json.dumps(publication("pumps", "in pieces")).encode()
    one.send_frame(1, whole[:10], final=False)
    one.send_frame(9, b"")
    one.send_frame(0, whole[10:])
    assert one.read_frame() == (10, b"")
    for client in (one, two):
        expect(client, publication("pumps", "in pieces"))

    two.send("unsubscribe", "pumps")
    two.send_frame(9, b"")
    assert two.read_frame() == (10, b"")
    one.send("publish", "pumps", "for one")
    expect(one, publication("pumps", "for one"))
    two.send("dance", "pumps")
    assert two.read()["action"] == "error"
    two.send_frame(8, (1000).to_bytes(2, "big"))
    assert two.read_frame()[0] == 8

    print("ready", flush=True)
    expect(one, publication("pumps", {"from": "backend"}))
    print("done", flush=True)


main(int(sys.argv[1]))
