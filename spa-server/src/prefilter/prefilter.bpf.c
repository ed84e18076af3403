// The kernel's side of the prefilter: which frames of a packet socket reach the daemon.
//
// It is the capture filter (../capture/filter), and what the sieve says of noise (docs/protocol.md,
// sections 4.2 and 4.3), in one program: a datagram of the right port and length passes if its
// tag, unmasked, may be one of those that are known. What it can't judge, passes.
//
// `make prefilter` makes prefilter.bpf.o of it.
//
// There is one program for sockets that see Ethernet frames, and one for those that see IP packets, as
// cooked captures do. The outermost VLAN tag is out of the frame then.

#include <linux/types.h>
#include <linux/bpf.h>

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, value) int(*name)[value]
#define __type(name, value) typeof(value) *name
#define always_inline inline __attribute__((always_inline))

static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
// Reads what is in fragments, too: of some network cards not even all headers are in the linear part.
static long (*const skb_load_bytes)(const void *skb, __u32 offset, void *to,
                                    __u32 length) = (void *)BPF_FUNC_skb_load_bytes;
static __u64 (*const ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;

// if_packet.h
#define PACKET_OUTGOING 4
// if_ether.h
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88a8
#define ETH_P_QINQ1 0x9100
#define ETH_HLEN 14
// IANA protocol numbers
#define HOP_BY_HOP 0
#define UDP 17
#define ROUTING 43
#define FRAGMENT 44
#define AUTHENTICATION 51
#define DESTINATION_OPTIONS 60

#define MAX_PORTS 64
#define MAX_IDENTITIES 2
#define WORDS_OF_A_PAGE 512
#define BITS_OF_A_PAGE_LOG2 15

// Written by the daemon: `Settings::bytes` in settings.rs.
struct settings {
    // Nanoseconds of CLOCK_BOOTTIME: afterwards every datagram of the right port and length passes.
    __u64 until;
    // Of 32 bits that choose a bit of TAGS, this many are too many.
    __u32 shift;
    __u32 udp_length;
    // Bytes of a frame that are handed over.
    __u32 snap_length;
    __u32 identities;
    __u32 masks[MAX_IDENTITIES][8];
    // Those that are one too many repeat another.
    __u16 ports[MAX_PORTS];
};

struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct settings);
} SETTINGS SEC(".maps");

struct page {
    __u64 words[WORDS_OF_A_PAGE];
};

// A Bloom filter of tags: of each, four bits that its first word chooses (bloom.rs).
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, __u32);
    __type(value, struct page);
} TAGS SEC(".maps");

// What was dropped: [0] of unknown tag, [1] for a knock port, but of another length.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64);
} DROPPED SEC(".maps");

static always_inline int drop(__u32 why) {
    __u64 *count = map_lookup_elem(&DROPPED, &why);
    if (count)
        *count += 1;
    return 0;
}

static always_inline __u32 big_endian16(const __u8 *bytes) { return bytes[0] << 8 | bytes[1]; }

#define ROTATE(x, n) ((x) << (n) | (x) >> (32 - (n)))
#define QUARTER_ROUND(a, b, c, d)                                                                  \
    a += b, d ^= a, d = ROTATE(d, 16);                                                             \
    c += d, b ^= c, b = ROTATE(b, 12);                                                             \
    a += b, d ^= a, d = ROTATE(d, 8);                                                              \
    c += d, b ^= c, b = ROTATE(b, 7)

// The first word of the key stream (RFC 8439, section 2.3), block counter 0.
static always_inline __u32 key_stream(const __u32 key[8], const __u32 nonce[3]) {
    __u32 x[16] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574, key[0],   key[1],
                   key[2],     key[3],     key[4],     key[5],     key[6],   key[7],
                   0,          nonce[0],   nonce[1],   nonce[2]};
#pragma clang loop unroll(disable)
    for (int round = 0; round < 10; round++) {
        QUARTER_ROUND(x[0], x[4], x[8], x[12]);
        QUARTER_ROUND(x[1], x[5], x[9], x[13]);
        QUARTER_ROUND(x[2], x[6], x[10], x[14]);
        QUARTER_ROUND(x[3], x[7], x[11], x[15]);
        QUARTER_ROUND(x[0], x[5], x[10], x[15]);
        QUARTER_ROUND(x[1], x[6], x[11], x[12]);
        QUARTER_ROUND(x[2], x[7], x[8], x[13]);
        QUARTER_ROUND(x[3], x[4], x[9], x[14]);
    }
    return x[0] + 0x61707865;
}

static always_inline int has_bit(__u32 bit) {
    __u32 at = bit >> BITS_OF_A_PAGE_LOG2;
    struct page *page = map_lookup_elem(&TAGS, &at);
    if (!page)
        return 1;
    return page->words[bit >> 6 & (WORDS_OF_A_PAGE - 1)] >> (bit & 63) & 1;
}

// What stands at the beginning of a knock: the masked tag, and of the nonce what the mask takes.
struct head {
    __u32 masked[4];
    __u32 nonce[3];
};

static always_inline int may_be_known(const struct settings *settings, const struct head *head,
                                      __u32 identity) {
    __u32 tag = head->masked[0] ^ key_stream(settings->masks[identity], head->nonce);
    // As the table of tags has it, where 0 means none.
    tag |= !tag;
    __u32 shift = settings->shift & 31;
    return has_bit(tag >> shift) && has_bit(tag * 0x9e3779b1 >> shift) &&
           has_bit(tag * 0x85ebca77 >> shift) && has_bit(tag * 0xc2b2ae3d >> shift);
}

// Where the UDP header is; 0 if there is none that is followed: it is never the first header.
static always_inline __u32 find_udp(struct __sk_buff *skb, __u32 at) {
    __u8 header[40];
    __u32 protocol = __builtin_bswap16(skb->protocol);
    for (int tags = 0; tags < 2; tags++) {
        if (protocol != ETH_P_8021Q && protocol != ETH_P_8021AD && protocol != ETH_P_QINQ1)
            break;
        if (skb_load_bytes(skb, at, header, 4))
            return 0;
        protocol = big_endian16(header + 2);
        at += 4;
    }
    if (protocol == ETH_P_IP) {
        if (skb_load_bytes(skb, at, header, 20))
            return 0;
        if (header[9] != UDP || big_endian16(header + 6) & 0x3fff)
            return 0;
        return at + (header[0] & 15) * 4;
    }
    if (protocol != ETH_P_IPV6 || skb_load_bytes(skb, at, header, 40))
        return 0;
    __u32 next = header[6];
    at += 40;
    for (int headers = 0; headers < 2; headers++) {
        if (next != HOP_BY_HOP && next != ROUTING && next != FRAGMENT && next != AUTHENTICATION &&
            next != DESTINATION_OPTIONS)
            break;
        if (skb_load_bytes(skb, at, header, 8))
            return 0;
        if (next == FRAGMENT) {
            if (big_endian16(header + 2) & 0xfff9)
                return 0;
            at += 8;
        } else {
            at += next == AUTHENTICATION ? header[1] * 4 + 8 : header[1] * 8 + 8;
        }
        next = header[0];
    }
    return next == UDP ? at : 0;
}

// `network`: where the network header is.
static always_inline int filter(struct __sk_buff *skb, __u32 network) {
    __u32 zero = 0;
    struct settings *settings = map_lookup_elem(&SETTINGS, &zero);
    if (!settings || skb->pkt_type == PACKET_OUTGOING)
        return 0;
    __u32 at = find_udp(skb, network);
    __u8 udp[8];
    if (!at || skb_load_bytes(skb, at, udp, 8))
        return 0;
    __u32 port = big_endian16(udp + 2);
    // Who may not read the kernel's memory (CAP_PERFMON) may not reach into a map by a number that
    // counts: this loop and the next are laid out. Branches would cost the verifier half a second;
    // of a difference of 0 alone, less 1, the first bit is 1.
    __u32 is_ours = 0;
#pragma clang loop unroll(full)
    for (__u32 n = 0; n < MAX_PORTS; n++)
        is_ours |= ((settings->ports[n] ^ port) - 1) >> 31;
    if (!is_ours)
        return 0;
    if (big_endian16(udp + 4) != settings->udp_length)
        return drop(1);
    struct head head;
    if (ktime_get_boot_ns() >= settings->until ||
        skb_load_bytes(skb, at + 8, &head, sizeof head))
        return settings->snap_length;
#pragma clang loop unroll(full)
    for (__u32 identity = 0; identity < MAX_IDENTITIES; identity++)
        if (identity < settings->identities && may_be_known(settings, &head, identity))
            return settings->snap_length;
    return drop(0);
}

SEC("socket")
int on_ethernet(struct __sk_buff *skb) { return filter(skb, ETH_HLEN); }

SEC("socket")
int on_ip(struct __sk_buff *skb) { return filter(skb, 0); }

const char LICENSE[] SEC("license") = "MIT OR Apache-2.0";
