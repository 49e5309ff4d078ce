// The tiles of tiles.c for processors with AVX2: sixteen registers of four lanes.
#define LANES 4
#include "tiles.c"
