/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A TCG plugin for qemu-user that counts the Arm (A64) instructions each guest thread executes, by kind, and writes
 * the counts of a thread whenever it makes a mark: getpriority(MARK, number), a system call that does nothing.
 *
 * It is loaded into QEMU, which is GPL-2, hence this file's licence; the rest of edgeexport is Apache-2.0 and only
 * starts QEMU as a program. QEMU's headers are in no package; the eight functions of its plugin interface, version 1,
 * that are used here are declared below from its documentation.
 *
 * Instructions are told apart by the encoding tables of the Arm Architecture Reference Manual (DDI 0487), chapter C4.
 * A translation block's kinds are counted once, when it is translated, and added whenever it is entered. Counting begins
 * at the first mark, where QEMU is told to forget its translations: starting Python is not slowed down.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef uint64_t plugin_id;
typedef void (*on_translation)(plugin_id, struct qemu_plugin_tb *);
typedef void (*on_execution)(unsigned int vcpu, void *data);
typedef void (*on_syscall)(plugin_id, unsigned int vcpu, int64_t number, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t, uint64_t);

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, on_translation);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, on_execution, int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_syscall);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void qemu_plugin_outs(const char *);
void qemu_plugin_reset(plugin_id, void (*on_done)(plugin_id));

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int qemu_plugin_version = 1;

enum { TOTAL, SIMD, MULTIPLY_ACCUMULATE, DOT_PRODUCT, LOADS, STORES, KINDS };
enum { THREADS = 1024, GETPRIORITY = 141, MARK = 0x45454d4b };

typedef struct {
    uint64_t of[KINDS];
} counts;

static counts executed[THREADS];
static int counting;

static void begin(plugin_id);

/* Bits high..low of an instruction word. */
static uint32_t bits(uint32_t word, int high, int low)
{
    return (word >> low) & ((1u << (high - low + 1)) - 1u);
}

/* SDOT, UDOT, USDOT, SUDOT, BFDOT, SMMLA, UMMLA, USMMLA, BFMMLA: vectors, and by element. */
static int is_dot_product(uint32_t word)
{
    uint32_t size = bits(word, 23, 22), is_unsigned = bits(word, 29, 29);

    if (bits(word, 31, 31))
        return 0;
    if (bits(word, 28, 24) == 0x0e && !bits(word, 21, 21) && bits(word, 15, 15) && bits(word, 10, 10)) {
        uint32_t opcode = bits(word, 14, 11);
        if (opcode >= 0x2 && opcode <= 0x5)
            return size == 2;
        return (opcode == 0xd || opcode == 0xf) && is_unsigned && size == 1;
    }
    if (bits(word, 28, 24) == 0x0f && !bits(word, 10, 10)) {
        uint32_t opcode = bits(word, 15, 12);
        return (opcode == 0xe && size == 2) || (opcode == 0xf && size != 3 && !is_unsigned);
    }
    return 0;
}

/* MLA, MLS, SMLAL, SQDMLAL, FMLA, FMLAL, BFMLAL, FMADD and kin: vectors, by element, and scalar floats. */
static int is_multiply_accumulate(uint32_t word)
{
    uint32_t group = bits(word, 28, 24), is_unsigned = bits(word, 29, 29), opcode;

    if (bits(word, 31, 24) == 0x1f)
        return 1;
    if (bits(word, 31, 31))
        return 0;
    if (group == 0x0f && !bits(word, 10, 10)) { /* by element */
        opcode = bits(word, 15, 12);
        return opcode <= 0x7 || (is_unsigned && (opcode == 0x8 || opcode >= 0xc)) || (opcode == 0xf && !is_unsigned);
    }
    if (group != 0x0e)
        return 0;
    if (bits(word, 21, 21) && bits(word, 10, 10)) { /* three of the same kind */
        opcode = bits(word, 15, 11);
        return opcode == 0x12 || opcode == 0x19 || (opcode == 0x1d && !is_unsigned);
    }
    if (bits(word, 21, 21) && !bits(word, 11, 10)) /* long: the result is twice as wide */
        return bits(word, 15, 14) == 2 && (!is_unsigned || !bits(word, 12, 12));
    if (bits(word, 22, 21) == 2 && bits(word, 15, 10) == 0x3) /* half precision */
        return !is_unsigned;
    return !bits(word, 21, 21) && bits(word, 23, 22) == 3 && bits(word, 15, 10) == 0x3f; /* BFMLAL */
}

/* Whether a word of the group "loads and stores" loads; atomics, which do both, are loads. */
static int is_load(uint32_t word)
{
    switch (bits(word, 29, 28)) {
    case 1: /* literal; or ordered with an offset */
        return !bits(word, 24, 24) || bits(word, 23, 22) != 0;
    case 3: /* one register: two bits for what is done, 10 of a vector is a store of 128 bits */
        if (bits(word, 21, 21) && !bits(word, 24, 24) && !bits(word, 11, 10) && !bits(word, 26, 26))
            return 1;
        return bits(word, 26, 26) ? bits(word, 22, 22) : bits(word, 23, 22) != 0;
    default: /* exclusive, ordered, structures, pairs */
        return bits(word, 22, 22);
    }
}

static void add(counts *to, uint32_t word)
{
    uint32_t group = bits(word, 28, 25);

    to->of[TOTAL]++;
    if ((group & 7) == 7) { /* x111: SIMD and floating point */
        to->of[SIMD]++;
        if (is_dot_product(word))
            to->of[DOT_PRODUCT]++;
        else if (is_multiply_accumulate(word))
            to->of[MULTIPLY_ACCUMULATE]++;
    } else if ((group & 5) == 4) { /* x1x0: loads and stores; bit 26 says of vector registers */
        if (bits(word, 26, 26))
            to->of[SIMD]++;
        to->of[is_load(word) ? LOADS : STORES]++;
    }
}

static void entered(unsigned int vcpu, void *block)
{
    for (int kind = 0; kind < KINDS; kind++)
        executed[vcpu % THREADS].of[kind] += ((counts *)block)->of[kind];
}

static void translated(plugin_id id, struct qemu_plugin_tb *block)
{
    counts *found = calloc(1, sizeof *found);

    (void)id;
    if (found == NULL)
        abort();
    for (size_t index = 0; index < qemu_plugin_tb_n_insns(block); index++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, index)), sizeof word);
        add(found, word);
    }
    qemu_plugin_register_vcpu_tb_exec_cb(block, entered, 0, found);
}

static void called(plugin_id id, unsigned int vcpu, int64_t number, uint64_t which, uint64_t mark, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    const uint64_t *of = executed[vcpu % THREADS].of;
    char line[256];

    (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPRIORITY || (uint32_t)which != MARK)
        return;
    snprintf(line, sizeof line,
             "mark %" PRIu64 " %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", mark,
             vcpu, of[TOTAL], of[SIMD], of[MULTIPLY_ACCUMULATE], of[DOT_PRODUCT], of[LOADS], of[STORES]);
    qemu_plugin_outs(line);
    if (!counting) {
        counting = 1;
        qemu_plugin_reset(id, begin);
    }
}

static void begin(plugin_id id)
{
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
}

EXPORTED int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
