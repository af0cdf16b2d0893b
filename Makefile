# SPDX-License-Identifier: GPL-2.0
# `make` builds rext4.ko as any out-of-tree module is built; the rest makes a bench of its own first and needs root.

KDIR ?= /lib/modules/$(shell uname -r)/build

.PHONY: module install clean setup stock debug tools test demo bench bench-host help

module:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

install: module
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules_install

clean:
	rm -rf build
	@if [ -d $(KDIR) ]; then $(MAKE) -C $(KDIR) M=$(CURDIR) clean; fi

setup:
	scripts/setup all

stock debug:
	scripts/build-module $@

tools:
	scripts/build-tools

test:
	tests/run

demo:
	@scripts/demo

bench:
	@scripts/peers

bench-host:
	rm -rf build/criterion
	scripts/in-sysroot 'cd tests/host && CRITERION_HOME=/src/rext4/build/criterion \
		REXT4_BENCH_MAX=$(or $(REXT4_BENCH_MAX),1000000) cargo bench --quiet -p rext4-bench --bench engine -- $(BENCH_HOST)'
	scripts/in-sysroot 'python3 scripts/host-report.py build/criterion docs/bench-host.md'

help:
	@echo 'make                 build rext4.ko against KDIR (the running kernel)'
	@echo 'make stock, debug    build it for the bench'"'"'s kernels, into build/'
	@echo 'make tools           build the rext4 command, into build/'
	@echo 'make test            everything: host tests, module builds, scenarios in virtual machines'
	@echo 'tests/run PATTERN    those tests whose name matches'
	@echo 'make demo            the reverse map damaged and rebuilt under load, in a virtual machine (some minutes)'
	@echo 'make bench           rext4 beside XFS and e2fsck, in a virtual machine; writes docs/bench.md (some 20 minutes)'
	@echo 'make bench-host      the pure layers measured on this machine, beside ordered maps'
	@echo 'make setup           only make what the bench rests on (scripts/setup)'
	@echo 'scripts/vm -- CMD    run a command in a virtual machine (see its head for options)'
