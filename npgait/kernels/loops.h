// What the sources of the compiled loops share.

typedef long long int64;

#if defined(_MSC_VER)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

// Where a kernel stands on an image; see Window in layers/patches.py.
#define WINDOW int height, int width, int channels, int k, int s, int top, int left, int rows, int columns
#define THE_WINDOW height, width, channels, k, s, top, left, rows, columns

static inline int64 least(int64 a, int64 b) { return a < b ? a : b; }
