/* The part of NVIDIA's management library that raymb asks, for machines without a GPU. NVML_GPUS has a GPU a line:
   memory in MiB, used in MiB, compute capability, uncorrected errors (-1: has no ECC). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
struct gpu { unsigned long long total, used; int major, minor, errors; };
static struct gpu gpus[16];

int nvmlInitWithFlags(unsigned flags) {
    if (getenv("NVML_HANGS")) sleep(60);
    return getenv("NVML_FAILS") ? atoi(getenv("NVML_FAILS")) : 0;
}
const char *nvmlErrorString(int code) { return code == 9 ? "Driver Not Loaded" : "Some Error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { strncpy(text, getenv("NVML_DRIVER"), length); return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    char *text = getenv("NVML_GPUS");
    for (*count = 0; *text; ++*count) {
        struct gpu *gpu = &gpus[*count];
        sscanf(text, "%llu %llu %d.%d %d", &gpu->total, &gpu->used, &gpu->major, &gpu->minor, &gpu->errors);
        text += strcspn(text, "\n");
        text += *text == '\n';
    }
    return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **handle) { *handle = &gpus[index]; return 0; }
int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned length) {
    strncpy(name, "NVIDIA H100 80GB HBM3", length);
    return 0;
}
int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, memory_v2 *memory) {
    memory->total = gpu->total << 20;
    memory->used = gpu->used << 20;
    return 0;
}
int nvmlDeviceGetCudaComputeCapability(struct gpu *gpu, int *major, int *minor) {
    *major = gpu->major;
    *minor = gpu->minor;
    return 0;
}
int nvmlDeviceGetTotalEccErrors(struct gpu *gpu, int type, int counter, unsigned long long *count) {
    *count = gpu->errors;
    return gpu->errors < 0 ? 3 : 0; /* not supported */
}
