# Builds each tests/cpp/*.cpp with the CPU drivers under one sanitizer and runs it.
# `make sanitize` calls this file from the root of the repository, once per sanitizer.

CXX ?= g++
SANITIZER ?= address,undefined

comma := ,
DIR := build/sanitize/$(subst $(comma),-,$(SANITIZER))
# The same arithmetic as in setup.py. No clones: the sanitizers' runtime is not up yet when the
# loader picks one.
FLAGS := -std=c++20 -O1 -g -fno-omit-frame-pointer -fno-math-errno -ffp-contract=off -Wall -Wextra \
	-DLRFAST_NO_CLONES -I csrc -pthread -fsanitize=$(SANITIZER) -fno-sanitize-recover=all

DRIVERS := $(patsubst csrc/cpu/%.cpp,$(DIR)/cpu/%.o,$(wildcard csrc/cpu/*.cpp))
TESTS := $(patsubst tests/cpp/%.cpp,$(DIR)/%,$(wildcard tests/cpp/*.cpp))

.PHONY: all
.SECONDARY:
.DELETE_ON_ERROR:
all: $(TESTS:=.passed)

$(DIR)/%.passed: $(DIR)/%
	$<
	@touch $@

$(DIR)/%: $(DIR)/%.o $(DRIVERS)
	$(CXX) $(FLAGS) -o $@ $^

# -MMD: each object also depends on the headers it includes.
$(DIR)/cpu/%.o: csrc/cpu/%.cpp tools/sanitize.mk
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) -MMD -c -o $@ $<

$(DIR)/%.o: tests/cpp/%.cpp tools/sanitize.mk
	@mkdir -p $(@D)
	$(CXX) $(FLAGS) -MMD -c -o $@ $<

-include $(wildcard $(DIR)/*.d $(DIR)/cpu/*.d)
