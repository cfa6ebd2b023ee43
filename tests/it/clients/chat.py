"""A client of the wire format `chat`, written from its description alone.

usage: chat.py PORT. Prints `ready` when 5551 and 5552 are verified and waits then for what a backend says.
"""

import json
import socket
import struct
import sys

HEADER = struct.Struct(">III")


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.bytes = b""

    def frame(self, command, body):
        body = json.dumps(body).encode()
        return HEADER.pack(HEADER.size + len(body), 1, command) + body

    def send(self, command, body):
        self.socket.sendall(self.frame(command, body))

    def fill(self, length):
        while len(self.bytes) < length:
            piece = self.socket.recv(65536)
            assert piece, "the server closed the connection"
            self.bytes += piece

    def read(self):
        self.fill(HEADER.size)
        length, _, command = HEADER.unpack(self.bytes[: HEADER.size])
        self.fill(length)
        body, self.bytes = self.bytes[HEADER.size : length], self.bytes[length:]
        return command, json.loads(body)

    def verify(self, number, token):
        self.send(1, {"phone_number": number, "token": token})
        command, body = self.read()
        assert command == 101, command
        return body["code"]

    def is_closed(self):
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def message(sender, text):
    return {"chat_from": sender, "chat_content": text}


def expect(client, command, body):
    got = client.read()
    assert got == (command, body), f"expected {(command, body)}, got {got}"


def main(port):
    one, two = Client(port), Client(port)
    # Before a verify everything else is ignored; a wrong token may be followed by the right one.
    one.send(4, {"chat_from": "5551", "chat_content": "nobody hears this"})
    one.send(5, {})
    assert two.verify("5552", "two") == 1
    assert one.verify("5551", "wrong") == 0
    while one.verify("5551", "one") == 0:
        pass

    one.send(2, {"chat_from": "5551", "chat_to": "5552", "chat_content": "hello"})
    expect(two, 102, message("5551", "hello"))
    two.send(3, {"chat_from": "5552", "chat_to": ["5551", "5552"], "chat_content": "grüß euch"})
    for client in (one, two):
        expect(client, 103, message("5552", "grüß euch"))
    two.send(4, {"chat_from": "5552", "chat_content": "all"})
    for client in (one, two):
        expect(client, 104, message("5552", "all"))

    # Split at every byte, and two in one piece.
    whole = one.frame(2, {"chat_from": "5551", "chat_to": "5552", "chat_content": "slow"})
    for byte in whole:
        one.socket.sendall(bytes([byte]))
    one.socket.sendall(whole + whole)
    for _ in range(3):
        expect(two, 102, message("5551", "slow"))

    # A second login replaces the first.
    again = Client(port)
    assert again.verify("5551", "one") == 1
    assert one.is_closed()
    # A frame that cannot be one ends the connection.
    broken = Client(port)
    broken.socket.sendall(HEADER.pack(11, 1, 5))
    assert broken.is_closed()
    # Who has sent a heartbeat and then nothing is let go.
    quiet = Client(port)
    assert quiet.verify("5553", "three") == 1
    quiet.send(5, {})
    assert quiet.is_closed()

    print("ready", flush=True)
    expect(two, 102, message("backend", "SET OUT1 ON"))
    for command in (102, 103, 104):
        for client in (again, two):
            if client is two or command != 102:
                expect(client, command, message("shop", f"number {command}"))
    print("done", flush=True)


main(int(sys.argv[1]))
