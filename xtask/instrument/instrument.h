// What Bochs tells this module (the interface of Bochs' instrument/instrumentation.txt). Bochs includes this file in all
// of its own, so it declares nothing but the hooks. A hook that is not listed here is empty.

#ifndef LAMINA_INSTRUMENT_H
#define LAMINA_INSTRUMENT_H

class bxInstruction_c;

void lamina_start(void);
void lamina_end(void);
void lamina_exited(unsigned cpu, Bit32u reason);
void lamina_invalidated(unsigned cpu, unsigned what);
void lamina_wrote_msr(unsigned cpu);
void lamina_wrote_port(Bit16u port, unsigned length, Bit32u value);
void lamina_data(unsigned cpu, bx_phy_address at, unsigned length, unsigned access);
void lamina_walk(unsigned cpu, bx_phy_address at, unsigned length, unsigned access, unsigned why);
void lamina_fetch_page(unsigned cpu, bx_phy_address page);
void lamina_instruction(unsigned cpu, bxInstruction_c *i);

#define BX_INSTR_INIT_ENV() lamina_start()
#define BX_INSTR_EXIT_ENV() lamina_end()

#define BX_INSTR_TLB_CNTRL(cpu_id, what, value) lamina_invalidated(cpu_id, what)
#define BX_INSTR_VMEXIT(cpu_id, reason, qualification) lamina_exited(cpu_id, reason)
#define BX_INSTR_WRMSR(cpu_id, address, value) lamina_wrote_msr(cpu_id)
#define BX_INSTR_OUTP(port, length, value) lamina_wrote_port(port, length, value)
#define BX_INSTR_LIN_ACCESS(cpu_id, linear, physical, length, type, access) lamina_data(cpu_id, physical, length, access)
// The build makes Bochs pass the reason too, and call the second one of these: see xtask's setup/bochs.rs.
#define BX_INSTR_PHY_ACCESS(cpu_id, physical, length, type, access, why) \
  lamina_walk(cpu_id, physical, length, access, why)
#define BX_INSTR_FETCH_PAGE(cpu_id, page) lamina_fetch_page(cpu_id, page)
#define BX_INSTR_BEFORE_EXECUTION(cpu_id, i) lamina_instruction(cpu_id, i)

#define BX_INSTR_INITIALIZE(cpu_id)
#define BX_INSTR_EXIT(cpu_id)
#define BX_INSTR_RESET(cpu_id, type)
#define BX_INSTR_HLT(cpu_id)
#define BX_INSTR_MWAIT(cpu_id, address, length, flags)
#define BX_INSTR_DEBUG_PROMPT()
#define BX_INSTR_DEBUG_CMD(command)
#define BX_INSTR_CNEAR_BRANCH_TAKEN(cpu_id, from, to)
#define BX_INSTR_CNEAR_BRANCH_NOT_TAKEN(cpu_id, from)
#define BX_INSTR_UCNEAR_BRANCH(cpu_id, what, from, to)
#define BX_INSTR_FAR_BRANCH(cpu_id, what, from_cs, from, to_cs, to)
#define BX_INSTR_OPCODE(cpu_id, i, opcode, length, is32, is64)
#define BX_INSTR_INTERRUPT(cpu_id, vector)
#define BX_INSTR_EXCEPTION(cpu_id, vector, error)
#define BX_INSTR_HWINTERRUPT(cpu_id, vector, cs, ip)
#define BX_INSTR_CACHE_CNTRL(cpu_id, what)
#define BX_INSTR_PREFETCH_HINT(cpu_id, what, segment, offset)
#define BX_INSTR_CLFLUSH(cpu_id, linear, physical)
#define BX_INSTR_AFTER_EXECUTION(cpu_id, i)
#define BX_INSTR_REPEAT_ITERATION(cpu_id, i)
#define BX_INSTR_INP(port, length)
#define BX_INSTR_INP2(port, length, value)

#endif
