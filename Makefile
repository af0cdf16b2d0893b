# SPDX-License-Identifier: GPL-2.0
# `make` builds rext4.ko like any out-of-tree module. The other targets first set up a build environment, which needs root.

KDIR ?= /lib/modules/$(shell uname -r)/build
PREFIX ?= /usr/local

.PHONY: module install clean setup stock debug uml tools install-tools doc check test test-long fstests demo bench bench-fs bench-host help

module:
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules

install: module
	$(MAKE) -C $(KDIR) M=$(CURDIR) modules_install

clean:
	rm -rf build
	@if [ -d $(KDIR) ]; then $(MAKE) -C $(KDIR) M=$(CURDIR) clean; fi

setup:
	scripts/setup all

stock debug uml:
	scripts/build-module $@

tools:
	scripts/build-tools

install-tools: tools
	install -D -m 0755 build/rext4 $(DESTDIR)$(PREFIX)/sbin/rext4
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man8 build/rext4*.8
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/man/man5 build/rext4.5
	install -D -m 0644 build/completions/rext4.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rext4
	install -D -m 0644 build/completions/_rext4 $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_rext4
	install -D -m 0644 build/completions/rext4.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/rext4.fish

# The pure layers as compiled on the host, with private items; the module's other layers need the kernel crate.
doc:
	scripts/in-sysroot 'cd tests/host && cargo doc --quiet --no-deps --document-private-items -p rext4-core --target-dir /var/cache/target/doc && \
		cd ../../tools && cargo doc --quiet --no-deps --document-private-items --lib --target-dir /var/cache/target/doc && \
		rm -rf ../build/doc && cp -r /var/cache/target/doc/doc ../build/doc'

check:
	tests/run --check

test:
	tests/run

test-long:
	tests/run --long

# A group or a test name each; see the head of tests/fstests/run for what the environment says.
fstests:
	@tests/fstests/run "$(FSTESTS)" $(GROUPS)

demo:
	@scripts/demo

bench:
	@scripts/peers

bench-fs:
	@scripts/bench-fs

bench-host:
	rm -rf build/criterion
	scripts/in-sysroot 'cd tests/host && CRITERION_HOME=/src/rext4/build/criterion \
		REXT4_BENCH_MAX=$(or $(REXT4_BENCH_MAX),1000000) cargo bench --quiet -p rext4-bench --bench engine -- $(BENCH_HOST)'
	scripts/in-sysroot 'python3 scripts/host-report.py build/criterion docs/bench-host.md'

help:
	@echo 'make                 build rext4.ko against KDIR (the running kernel)'
	@echo 'make stock, debug, uml  build it for the bench'"'"'s kernels, into build/'
	@echo 'make tools           build the rext4 command, its man pages and completions, into build/'
	@echo 'make install-tools   install them (PREFIX=/usr/local, DESTDIR=)'
	@echo 'make doc             rustdoc of the pure layers and of the command, into build/doc'
	@echo 'make check           host tests, KUnit and the scenarios in User Mode Linux, style (some minutes)'
	@echo 'make test            all tests, including those that need emulated machines'
	@echo 'make test-long       the long forms: crashes at 500 points, a fault at every site of each system call (hours)'
	@echo 'tests/run PATTERN    the tests whose name contains PATTERN'
	@echo 'make demo            damage and repair the reverse map under load, in a virtual machine (some minutes)'
	@echo 'make bench           compare rext4 with XFS and e2fsck, emulated and natively; writes docs/bench.md (about 15 minutes)'
	@echo 'make bench-fs        compare everyday work with ext4 and XFS, by processor time of the kernel; writes docs/bench-fs.md'
	@echo 'make bench-host      measure the pure layers on this machine, compared with ordered maps'
	@echo 'make setup           only set up sysroot, kernels and guest image (scripts/setup)'
	@echo 'make fstests         FSTESTS=CHECKOUT [GROUPS="quick clone"]: a built fstests checkout, on rext4 and on stock ext4'
	@echo 'scripts/vm -- CMD    run a command in a virtual machine (see its head for options)'
