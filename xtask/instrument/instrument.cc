// A second opinion on Lamina from outside: whether guests stay in their own memory, and what an exit costs beside its
// instructions. Part of the Bochs that `cargo xtask run --instrumented` builds; docs/adr/0011 has what it sees and what
// it does not.
//
// Owns the map of who owns which frame, as the hypervisor announced it, and all counts. Judges by what the emulated
// processor does alone: which VM runs follows from the EPT pointer that it runs with. Never changes anything in the machine.

#include "bochs.h"
#include "cpu/cpu.h"
#include "memory/memory-bochs.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace {

// ---- What the hypervisor announces: `lamina_vmm::ownership` has the other side ----

// An OUT of 32 bits to this port; EAX has the word below, RCX, RSI and RDI what belongs to it.
const Bit16u PORT = 0x4c61;
// The guest with the number RCX runs with nested tables whose root is at RSI.
const Bit32u ROOT = 0x4c610001;
// RDI bytes from RSI are memory of the VM in bits 15:0 of RCX, which may do with it what bits 18:16 say.
const Bit32u OWNED = 0x4c610002;
// The VM with the number RCX has ended, and owns nothing.
const Bit32u ENDED = 0x4c610003;

const Bit8u READ = 1, WRITE = 2, EXECUTE = 4;

// The port that ends the machine: its first letter is when the report is made, since nobody waits for Bochs' own end.
const Bit16u SHUTDOWN = 0x8900;

const unsigned PAGE = 12, LINE = 6;

// Where the report goes: the file that this variable names, else standard error.
const char VARIABLE[] = "LAMINA_OPINION";

// ---- Who owns what ----

struct Frame {
  Bit16u vm; // 0: nobody's
  Bit8u rights;
};

struct Root {
  bx_phy_address at;
  Bit16u vm;
};

const unsigned ROOTS = 256, TOLD = 32;

Frame *frames;
Bit64u frame_count;
Root roots[ROOTS];
unsigned root_count;

// The guest that runs is known; which VM it is, 0 where nobody announced it.
bool entered;
Bit16u running;
// Bochs is about to leave the guest, and has not changed its mode yet.
bool leaving;
// A page that the running guest was found to be allowed to fetch from.
bx_phy_address fetched = ~bx_phy_address(0);

FILE *out;
bool reported;
Bit64u violations;
Bit64u data_checked, fetches_checked, walks_checked, structures_checked, announcements, entries;

// ---- What is counted from an exit to the next entry ----

enum Metric { INSTRUCTIONS, ACCESSES, DATA_LINES, CODE_LINES, GUEST_LINES, INVALIDATIONS, MSR_WRITES, METRICS };
const char *const NAMES[METRICS] = {
  "instructions", "accesses", "data-lines", "code-lines", "guest-lines", "invalidations", "msr-writes",
};

const unsigned REASONS = 80, BINS = 4096;

// How often a count had which value; the last bin has all that are larger.
Bit32u histogram[REASONS][METRICS][BINS];
Bit64u exits[REASONS];

struct Stamps {
  Bit32u data, code;
};

// For each line of memory, the exit behind which it was touched last.
Stamps *stamps;
Bit64u line_count;
Bit32u epoch;
// The hypervisor runs, behind an exit for this reason.
bool behind_exit;
unsigned reason_now;
Bit64u now[METRICS];

void violation(unsigned cpu, const char *format, ...)
{
  if (++violations > TOLD || reported)
    return;
  fputs("violation ", out);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(out, format, arguments);
  va_end(arguments);
  fprintf(out, "; rip 0x%llx\n", (unsigned long long) BX_CPU(cpu)->prev_rip);
  fflush(out);
}

void prepare()
{
  if (frames)
    return;
  frame_count = BX_MEM(0)->get_memory_len() >> PAGE;
  line_count = BX_MEM(0)->get_memory_len() >> LINE;
  frames = (Frame *) calloc(frame_count, sizeof(Frame));
  stamps = (Stamps *) calloc(line_count, sizeof(Stamps));
  if (!frames || !stamps) {
    fprintf(stderr, "lamina: the host has no memory to keep track of the machine's\n");
    exit(1);
  }
}

Frame owner(bx_phy_address at)
{
  Bit64u frame = at >> PAGE;
  return frame < frame_count ? frames[frame] : Frame();
}

// The VM whose nested tables the processor uses; 0 where nobody announced them.
Bit16u by_root(unsigned cpu)
{
  bx_phy_address root = BX_CPU(cpu)->vmcs.eptptr & BX_CONST64(0x000ffffffffff000);
  for (unsigned n = 0; n < root_count; n++) {
    if (roots[n].at == root)
      return roots[n].vm;
  }
  return 0;
}

// What an access needs, by the two low bits of Bochs' number of it, which shadow stacks share.
Bit8u needs(unsigned access)
{
  static const Bit8u rights[4] = { READ, WRITE, EXECUTE, READ | WRITE };
  return rights[access & 3];
}

const char *verb(unsigned access)
{
  static const char *const verbs[4] = { "reads", "writes", "fetches from", "reads and writes" };
  return verbs[access & 3];
}

// An access of the guest's, or of the processor in the guest's own page tables.
void check(unsigned cpu, bx_phy_address at, unsigned access, const char *what)
{
  Frame frame = owner(at);
  Bit8u needed = needs(access);
  if (frame.vm == running && running && (frame.rights & needed) == needed)
    return;
  unsigned long long address = at;
  if (frame.vm == running && running)
    violation(cpu, "VM %u %s 0x%llx (%s), its own, for which it has no right", running, verb(access), address, what);
  else if (frame.vm)
    violation(cpu, "VM %u %s 0x%llx (%s), which is memory of VM %u", running, verb(access), address, what, frame.vm);
  else
    violation(cpu, "VM %u %s 0x%llx (%s), which is no memory of a VM", running, verb(access), address, what);
}

// A structure of the hypervisor's that the processor uses for a guest: no guest may be able to write it.
void check_structure(unsigned cpu, bx_phy_address at, unsigned why)
{
  structures_checked++;
  Frame frame = owner(at);
  if (frame.vm)
    violation(cpu, "the processor has a structure of the hypervisor's (%u) at 0x%llx, which is memory of VM %u", why,
              (unsigned long long) at, frame.vm);
}

bool in_guests_tables(unsigned why)
{
  return (why >= BX_PDPTR0_ACCESS && why <= BX_PDPTR3_ACCESS) || (why >= BX_PTE_ACCESS && why <= BX_PML5E_ACCESS);
}

void give(unsigned cpu, Bit16u vm, Bit8u rights, bx_phy_address at, Bit64u length)
{
  for (Bit64u frame = at >> PAGE; frame < (at + length) >> PAGE; frame++) {
    if (frame >= frame_count) {
      violation(cpu, "VM %u is given 0x%llx, which is no memory", vm, (unsigned long long) frame << PAGE);
      return;
    }
    if (frames[frame].vm && frames[frame].vm != vm)
      violation(cpu, "VM %u is given 0x%llx, which is memory of VM %u", vm, (unsigned long long) frame << PAGE,
                frames[frame].vm);
    frames[frame].vm = vm;
    frames[frame].rights = rights;
  }
}

void end(Bit16u vm)
{
  for (Bit64u frame = 0; frame < frame_count; frame++) {
    if (frames[frame].vm == vm)
      frames[frame] = Frame();
  }
  unsigned kept = 0;
  for (unsigned n = 0; n < root_count; n++) {
    if (roots[n].vm != vm)
      roots[kept++] = roots[n];
  }
  root_count = kept;
}

void touch(Bit64u line, bool code)
{
  if (line >= line_count)
    return;
  Bit32u &stamp = code ? stamps[line].code : stamps[line].data;
  if (stamp == epoch)
    return;
  stamp = epoch;
  if (code)
    now[CODE_LINES]++;
  else
    now[frames[line >> (PAGE - LINE)].vm ? GUEST_LINES : DATA_LINES]++;
}

void close_record()
{
  if (!behind_exit)
    return;
  behind_exit = false;
  exits[reason_now]++;
  for (unsigned metric = 0; metric < METRICS; metric++) {
    Bit64u value = now[metric] < BINS ? now[metric] : BINS - 1;
    histogram[reason_now][metric][value]++;
  }
}

// The value that `rank` of the values in `bins` are below.
unsigned at_rank(const Bit32u *bins, Bit64u rank)
{
  Bit64u below = 0;
  for (unsigned value = 0; value < BINS; value++) {
    below += bins[value];
    if (below > rank)
      return value;
  }
  return BINS - 1;
}

void report()
{
  if (reported || !out)
    return;
  reported = true;
  for (unsigned reason = 0; reason < REASONS; reason++) {
    if (!exits[reason])
      continue;
    fprintf(out, "exit %u %llu", reason, (unsigned long long) exits[reason]);
    for (unsigned metric = 0; metric < METRICS; metric++) {
      const Bit32u *bins = histogram[reason][metric];
      Bit64u last = exits[reason] - 1;
      fprintf(out, " %s=%u/%u/%u", NAMES[metric], at_rank(bins, 0), at_rank(bins, last / 2), at_rank(bins, last));
    }
    fputc('\n', out);
  }
  fprintf(out, "announcements %llu\nentries %llu\n", (unsigned long long) announcements, (unsigned long long) entries);
  fprintf(out, "data %llu\nfetches %llu\nwalks %llu\nstructures %llu\n", (unsigned long long) data_checked,
          (unsigned long long) fetches_checked, (unsigned long long) walks_checked,
          (unsigned long long) structures_checked);
  fprintf(out, "violations %llu\n", (unsigned long long) violations);
  fflush(out);
}

// A guest is entered. Bochs tells of the change before it is one, so this is found out at the guest's first access.
void enter(unsigned cpu)
{
  prepare();
  close_record();
  entries++;
  entered = true;
  fetched = ~bx_phy_address(0);
  running = by_root(cpu);
  VMCS_CACHE *vmcs = &BX_CPU(cpu)->vmcs;
  if (!running)
    violation(cpu, "a guest is entered with nested tables at 0x%llx, which nobody announced",
              (unsigned long long) vmcs->eptptr);
  else if (vmcs->vmexec_ctrls2.VPID_ENABLE() && vmcs->vpid != running)
    violation(cpu, "VM %u is entered with the VPID %u", running, vmcs->vpid);
}

bool in_guest(unsigned cpu)
{
  if (!BX_CPU(cpu)->in_vmx_guest) {
    leaving = false;
    return false;
  }
  if (leaving)
    return false;
  if (!entered)
    enter(cpu);
  return true;
}

} // namespace

void lamina_start(void)
{
  const char *name = getenv(VARIABLE);
  out = name ? fopen(name, "w") : stderr;
  if (!out) {
    fprintf(stderr, "lamina: cannot write %s\n", name);
    exit(1);
  }
  atexit(report);
}

void lamina_end(void)
{
  report();
}

void lamina_exited(unsigned cpu, Bit32u reason)
{
  prepare();
  // An entry that fails is an exit, too: no guest was in between.
  if (!in_guest(cpu))
    close_record();
  entered = false;
  leaving = BX_CPU(cpu)->in_vmx_guest;
  running = 0;
  reason &= 0xffff;
  reason_now = reason < REASONS ? reason : REASONS - 1;
  memset(now, 0, sizeof(now));
  behind_exit = true;
  epoch++;
}

void lamina_invalidated(unsigned cpu, unsigned what)
{
  if (!in_guest(cpu) && (what == BX_INSTR_MOV_CR3 || what >= BX_INSTR_INVLPG))
    now[INVALIDATIONS]++;
}

void lamina_wrote_msr(unsigned cpu)
{
  if (!in_guest(cpu))
    now[MSR_WRITES]++;
}

void lamina_wrote_port(Bit16u port, unsigned length, Bit32u value)
{
  // Lamina runs on the first processor. What a guest may have been given of ports has nothing to announce.
  const unsigned cpu = 0;
  if (in_guest(cpu))
    return;
  if (port == SHUTDOWN && value == 'S')
    report();
  if (port != PORT || length != 4)
    return;
  prepare();
  announcements++;
  fetched = ~bx_phy_address(0);
  Bit64u who = BX_CPU(cpu)->gen_reg[BX_64BIT_REG_RCX].rrx;
  Bit64u at = BX_CPU(cpu)->gen_reg[BX_64BIT_REG_RSI].rrx;
  Bit64u size = BX_CPU(cpu)->gen_reg[BX_64BIT_REG_RDI].rrx;
  Bit16u vm = Bit16u(who);
  switch (value) {
    case ROOT:
      if (root_count == ROOTS) {
        violation(cpu, "more than %u nested tables are in use", ROOTS);
        return;
      }
      roots[root_count].at = at;
      roots[root_count++].vm = vm;
      break;
    case OWNED:
      give(cpu, vm, Bit8u(who >> 16) & 7, at, size);
      break;
    case ENDED:
      end(vm);
      break;
    default:
      violation(cpu, "an announcement that is none: 0x%x", value);
  }
}

void lamina_data(unsigned cpu, bx_phy_address at, unsigned length, unsigned access)
{
  if (in_guest(cpu)) {
    data_checked++;
    check(cpu, at, access, "data");
    return;
  }
  if (!behind_exit)
    return;
  now[ACCESSES]++;
  for (Bit64u line = at >> LINE; line <= (at + length - 1) >> LINE; line++)
    touch(line, false);
}

void lamina_walk(unsigned cpu, bx_phy_address at, unsigned, unsigned access, unsigned why)
{
  if (!in_guest(cpu))
    return;
  if (in_guests_tables(why)) {
    walks_checked++;
    check(cpu, at, access, "its page tables");
  } else {
    check_structure(cpu, at, why);
  }
}

void lamina_fetch_page(unsigned cpu, bx_phy_address page)
{
  if (!in_guest(cpu))
    return;
  check(cpu, page, BX_EXECUTE, "code");
  fetched = page;
}

void lamina_instruction(unsigned cpu, bxInstruction_c *i)
{
  // Bochs ends its traces with an instruction that is none.
  if (i->ilen() == 0)
    return;
  bx_phy_address page = BX_CPU(cpu)->pAddrFetchPage;
  if (in_guest(cpu)) {
    fetches_checked++;
    if (page != fetched) {
      check(cpu, page, BX_EXECUTE, "code");
      fetched = page;
    }
    return;
  }
  if (!behind_exit)
    return;
  now[INSTRUCTIONS]++;
  bx_phy_address at = page | PAGE_OFFSET(BX_CPU(cpu)->prev_rip);
  touch(at >> LINE, true);
  touch((at + i->ilen() - 1) >> LINE, true);
}
