/*
 * The practical limit of the job, for the benchmark to compare with.
 *
 * One thread and no checks: it takes a command from the queue, finds the device's
 * socket, writes the line and acknowledges. It has no outcomes, receipts or presence,
 * never reconnects, and believes whatever it is sent; nobody should run it. What it
 * reaches on a machine is close to what the broker and the kernel allow there.
 *
 *     limit_bridge BROKER_PORT QUEUE PREFETCH DEVICES
 *
 * It listens on a free port of 127.0.0.1 and prints `listening PORT`, takes DEVICES
 * connections from 127.1.0.0/16, starts to consume, prints `ready` and runs until killed.
 * With prefetch 1 each command is acknowledged by itself; with more, one acknowledgement
 * stands for all before it, after half the prefetch or when nothing more is at hand.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <amqp.h>
#include <amqp_tcp_socket.h>

enum { CHANNEL = 1, BACKLOG = 4096, LINE_MAX = 512 };

/* The socket of 127.1.x.y stands at [x * 256 + y]; 0 is no device. */
static int devices[1 << 16];

static unsigned slot(struct in_addr address) { return ntohl(address.s_addr) & 0xffff; }

static void fail(const char *what) {
    fprintf(stderr, "limit_bridge: %s\n", what);
    exit(1);
}

static void must(amqp_rpc_reply_t reply, const char *what) {
    if (reply.reply_type != AMQP_RESPONSE_NORMAL) fail(what);
}

static void say(const char *word, int number) {
    if (number) printf("%s %d\n", word, number);
    else printf("%s\n", word);
    fflush(stdout);
}

static int listen_for_devices(void) {
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof me;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&me, size) || listen(listener, BACKLOG)) fail("cannot listen for devices");
    getsockname(listener, (void *)&me, &size);
    say("listening", ntohs(me.sin_port));
    return listener;
}

/* The sockets stay blocking: a line is always written whole. */
static void accept_devices(int listener, int count) {
    for (int i = 0; i < count; i++) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int on = 1, device = accept(listener, (void *)&peer, &size);
        if (device < 0) fail("cannot accept a device");
        setsockopt(device, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        devices[slot(peer.sin_addr)] = device;
    }
}

static amqp_connection_state_t consume(int port, const char *queue, int prefetch) {
    amqp_connection_state_t broker = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(broker);
    if (!socket || amqp_socket_open(socket, "127.0.0.1", port)) fail("cannot connect to the broker");
    must(amqp_login(broker, "/", 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest"), "cannot log in");
    amqp_channel_open(broker, CHANNEL);
    must(amqp_get_rpc_reply(broker), "cannot open a channel");
    amqp_basic_qos(broker, CHANNEL, 0, prefetch, 0);
    must(amqp_get_rpc_reply(broker), "cannot set the prefetch");
    amqp_basic_consume(broker, CHANNEL, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
    must(amqp_get_rpc_reply(broker), "cannot consume");
    return broker;
}

/* The text of a field of a flat JSON object, ended with a NUL in place of its quote. */
static char *field(char *body, const char *key) {
    char *text = strstr(body, key);
    if (!text) return NULL;
    text += strlen(key);
    char *end = strchr(text, '"');
    if (!end) return NULL;
    *end = 0;
    return text;
}

static void write_command(amqp_bytes_t message) {
    char body[LINE_MAX];
    size_t size = message.len < sizeof body - 1 ? message.len : sizeof body - 1;
    memcpy(body, message.bytes, size);
    body[size] = 0;
    char *command = field(body, "\"cmd\":\""), *address = field(body, "\"address\":\"");
    struct in_addr ip;
    if (!command || !address || !inet_aton(address, &ip)) return;
    int device = devices[slot(ip)];
    if (!device) return;
    /* the closing quote and brace, which the command no longer needs, make room for the line's end */
    size_t length = strlen(command);
    memcpy(command + length, "\r\n", 2);
    if (write(device, command, length + 2) < 0) fail("cannot write to a device");
}

static void run(amqp_connection_state_t broker, int prefetch) {
    int together = prefetch / 2 > 1 ? prefetch / 2 : 1, unacknowledged = 0;
    for (;;) {
        amqp_envelope_t delivery;
        amqp_maybe_release_buffers(broker);
        must(amqp_consume_message(broker, &delivery, NULL, 0), "the broker ended the consumer");
        write_command(delivery.message.body);
        int more = amqp_frames_enqueued(broker) || amqp_data_in_buffer(broker);
        if (++unacknowledged >= together || !more) {
            if (amqp_basic_ack(broker, CHANNEL, delivery.delivery_tag, unacknowledged > 1)) fail("cannot acknowledge");
            unacknowledged = 0;
        }
        amqp_destroy_envelope(&delivery);
    }
}

int main(int count, char **words) {
    if (count != 5) fail("wants BROKER_PORT QUEUE PREFETCH DEVICES");
    int prefetch = atoi(words[3]);
    accept_devices(listen_for_devices(), atoi(words[4]));
    amqp_connection_state_t broker = consume(atoi(words[1]), words[2], prefetch);
    say("ready", 0);
    run(broker, prefetch);
}
