"""A client of the wire format `channel`, written from its description alone.

usage: channel.py PORT. Prints `ready` when it has joined `pumps` and waits then for what a backend says there.
"""

import json
import socket
import sys

END = b"##END##"


class Client:
    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.bytes = b""

    def send(self, frame):
        self.socket.sendall(json.dumps(frame).encode() + END)

    def ask(self, command, channel, **more):
        self.send({"TYPE": "Q", "COMMAND": command, "CHANNEL": channel, **more})

    def read(self):
        while END not in self.bytes:
            piece = self.socket.recv(65536)
            assert piece, "the server closed the connection"
            self.bytes += piece
        frame, self.bytes = self.bytes.split(END, 1)
        return json.loads(frame)


def reply(command, channel, members):
    return {"TYPE": "R", "COMMAND": command, "CHANNEL": channel, "CNUM": members}


def publication(channel, message):
    return {"TYPE": "PUB", "CHANNEL": channel, "MSG": message}


def expect(client, frame):
    got = client.read()
    assert got == frame, f"expected {frame}, got {got}"


def expect_error(client, command):
    got = client.read()
    assert (got["TYPE"], got["COMMAND"]) == ("E", command) and got["ERROR_MESSAGE"], got


def main(port):
    one, two, three = Client(port), Client(port), Client(port)
    one.ask("JC", "pumps")
    expect(one, reply("JC", "pumps", 1))
    two.ask("JC", "pumps")
    expect(two, reply("JC", "pumps", 2))

    # To every member, the sender included, and from one that is none.
    message = {"speed": 1.50, "text": "grün ##", "list": [1, None]}
    two.ask("PUB", "pumps", MSG=message)
    expect(two, reply("PUB", "pumps", 2))
    expect(two, publication("pumps", message))
    expect(one, publication("pumps", message))
    three.ask("PUB", "pumps", MSG="from outside")
    expect(three, reply("PUB", "pumps", 2))
    for member in (one, two):
        expect(member, publication("pumps", "from outside"))

    # What is wrong is said, and the connection goes on.
    three.ask("PUB", "valves", MSG="x")
    expect_error(three, "PUB")
    three.ask("LC", "pumps")
    expect_error(three, "LC")
    three.ask("DANCE", "pumps")
    expect_error(three, "DANCE")
    three.send({"TYPE": "?", "COMMAND": "JC", "CHANNEL": "pumps"})
    expect_error(three, "JC")
    three.socket.sendall(b"\xff\xfe" + END + b"{no json" + END)
    for _ in range(2):
        assert three.read()["TYPE"] == "E"
    # Split at every byte, and two in one piece.
    for byte in json.dumps({"TYPE": "Q", "COMMAND": "JC", "CHANNEL": "valves"}).encode() + END:
        three.socket.sendall(bytes([byte]))
    expect(three, reply("JC", "valves", 1))
    frames = [{"TYPE": "Q", "COMMAND": command, "CHANNEL": "valves"} for command in ("LC", "JC")]
    three.socket.sendall(b"".join(json.dumps(frame).encode() + END for frame in frames))
    expect(three, reply("LC", "valves", 0))
    expect(three, reply("JC", "valves", 1))

    # A closed connection leaves its channels.
    two.socket.close()
    while True:
        one.ask("JC", "pumps")
        if one.read() == reply("JC", "pumps", 1):
            break

    # A backend says something to the group.
    print("ready", flush=True)
    expect(one, publication("pumps", {"from": "backend"}))
    expect(one, publication("pumps", "ALL STOP"))
    print("done", flush=True)


main(int(sys.argv[1]))
