// gloo is inside libtorch_cpu.so, its headers are not in the package. These five files declare what c10d's ProcessGroupGloo.hpp names and
// no more; nothing here is ever constructed by us.
#pragma once
