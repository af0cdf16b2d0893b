/* SPDX-License-Identifier: GPL-2.0 */
/*
 * crc32c of User Mode Linux by the processor's own instruction, as lib/crc includes it under the name crc32.h. Its Kconfig has
 * nothing but bytewise code for that architecture, which distorts every comparison of file systems with metadata checksums.
 */

#define crc32_le_arch crc32_le_base
#define crc32_be_arch crc32_be_base

static bool crc32c_instruction;

static u32 crc32c_arch(u32 crc, const u8 *p, size_t len)
{
	unsigned long state = crc;

	if (!crc32c_instruction)
		return crc32c_base(crc, p, len);
	for (; len >= sizeof(unsigned long); p += sizeof(unsigned long), len -= sizeof(unsigned long))
		asm("crc32q %1, %0" : "+r" (state) : "rm" (*(const unsigned long *)p));
	crc = state;
	for (; len; p++, len--)
		asm("crc32b %1, %0" : "+r" (crc) : "rm" (*p));
	return crc;
}

#define crc32_mod_init_arch crc32_mod_init_arch
static void crc32_mod_init_arch(void)
{
	unsigned int eax = 1, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a" (eax), "=b" (ebx), "+c" (ecx), "=d" (edx));
	crc32c_instruction = ecx & (1 << 20);
}

static u32 crc32_optimizations_arch(void)
{
	return crc32c_instruction ? CRC32C_OPTIMIZATION : 0;
}
