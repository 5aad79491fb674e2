/* floor ROOTFS PROGRAM [ARG…]: the least that a container can cost.
 *
 * One clone3(2) into the same namespaces, the mounts and devices of the default configuration with mount(2), pivot_root(2) and
 * execve(2), without a configuration to read, a state to keep or anything to protect. FLOOR_CGROUPS=DIR:DIR… makes a leaf in
 * each of these cgroup directories and puts the process there.
 *
 * FLOOR_ENGINE=DIR: PROGRAM is a module, which the engine in DIR runs from a detached mount of that directory (docs/engine.md).
 * FLOOR_NATIVE=FILE is what the module was compiled to.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 32 };

static void must(int result, const char *what) {
  if (result < 0) err(99, "%s", what);
}

static void copy_file(const char *from, const char *to) {
  char text[256];
  int in = open(from, O_RDONLY), out = open(to, O_WRONLY);
  ssize_t length = in < 0 ? -1 : read(in, text, sizeof text);
  if (length > 0 && out >= 0 && write(out, text, length) < 0) warn("%s", to);
  if (in >= 0) close(in);
  if (out >= 0) close(out);
}

static void enter_cgroup(const char *leaf, const char *above, pid_t pid) {
  char from[512], to[512], number[16];
  /* A v1 cpuset takes no process before it has both. */
  const char *files[] = {"cpuset.cpus", "cpuset.mems"};
  for (int i = 0; i < 2 && strstr(above, "cpuset"); i++) {
    snprintf(from, sizeof from, "%.400s/%s", above, files[i]);
    snprintf(to, sizeof to, "%.400s/%s", leaf, files[i]);
    copy_file(from, to);
  }
  snprintf(to, sizeof to, "%.400s/cgroup.procs", leaf);
  int file = open(to, O_WRONLY);
  must(file, to);
  int length = snprintf(number, sizeof number, "%d", pid);
  must(write(file, number, length), to);
  close(file);
}

static int detached(const char *path) {
  int mount = path ? open_tree(AT_FDCWD, path, OPEN_TREE_CLONE) : -1;
  if (!path) return mount;
  must(mount, path);
  struct mount_attr attr = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
  must(mount_setattr(mount, "", AT_EMPTY_PATH, &attr, sizeof attr), "mount_setattr");
  return mount;
}

static void start_engine(int engine, int native, char **argv) {
  enum { OPTIONS = 10, LONGEST = 64 };
  char text[OPTIONS][LONGEST];
  int module = open(argv[0], O_RDONLY), environment = memfd_create("environment", 0), count = 0;
  must(module, argv[0]);
  must(environment, "memfd_create");
  snprintf(text[count++], LONGEST, "/proc/self/fd/%d/ld.so", engine);
  snprintf(text[count++], LONGEST, "--inhibit-cache");
  snprintf(text[count++], LONGEST, "--library-path");
  snprintf(text[count++], LONGEST, "/proc/self/fd/%d/lib", engine);
  snprintf(text[count++], LONGEST, "/proc/self/fd/%d/rt-wasmedge", engine);
  snprintf(text[count++], LONGEST, "--contract=1");
  snprintf(text[count++], LONGEST, "--engine-dir=%d", engine);
  snprintf(text[count++], LONGEST, "--module=%d", module);
  snprintf(text[count++], LONGEST, "--env=%d", environment);
  if (native >= 0) snprintf(text[count++], LONGEST, "--native=%d", native);
  char *args[OPTIONS + MOST], *nothing[] = {NULL};
  int length = 0;
  while (length < count) args[length] = text[length], length++;
  args[length++] = "--dir=rw:/";
  args[length++] = "--";
  while (*argv && length < OPTIONS + MOST - 1) args[length++] = *argv++;
  args[length] = NULL;
  execve(args[0], args, nothing);
  err(98, "%s", args[0]);
}

static void inside(const char *root, char **argv, int engine, int native) {
  must(mount("", "/", NULL, MS_REC | MS_SLAVE, NULL), "make / a slave");
  must(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind the rootfs");
  must(chdir(root), root);
  static const struct { const char *type, *place; unsigned long flags; const char *data; } mounts[] = {
      {"proc", "proc", 0, NULL},
      {"tmpfs", "dev", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k"},
      {"devpts", "dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
      {"tmpfs", "dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k"},
      {"mqueue", "dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL},
      {"sysfs", "sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL},
      {"cgroup2", "sys/fs/cgroup", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL},
  };
  for (size_t i = 0; i < sizeof mounts / sizeof *mounts; i++) {
    mkdir(mounts[i].place, 0755);
    must(mount(mounts[i].type, mounts[i].place, mounts[i].type, mounts[i].flags, mounts[i].data), mounts[i].place);
  }
  static const struct { const char *name; int major, minor; } devices[] = {
      {"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0},
  };
  for (size_t i = 0; i < sizeof devices / sizeof *devices; i++)
    must(mknod(devices[i].name, S_IFCHR | 0666, makedev(devices[i].major, devices[i].minor)), devices[i].name);
  static const char *const links[][2] = {
      {"/proc/self/fd", "dev/fd"}, {"/proc/self/fd/0", "dev/stdin"}, {"/proc/self/fd/1", "dev/stdout"},
      {"/proc/self/fd/2", "dev/stderr"}, {"pts/ptmx", "dev/ptmx"},
  };
  for (size_t i = 0; i < sizeof links / sizeof *links; i++) must(symlink(links[i][0], links[i][1]), links[i][1]);
  static const char *const read_only[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"};
  for (size_t i = 0; i < sizeof read_only / sizeof *read_only; i++)
    if (mount(read_only[i], read_only[i], NULL, MS_BIND | MS_REC, NULL) == 0)
      must(mount(NULL, read_only[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), read_only[i]);
  static const char *const masked[] = {"proc/kcore", "proc/keys", "proc/timer_list", "proc/latency_stats", "proc/sched_debug"};
  for (size_t i = 0; i < sizeof masked / sizeof *masked; i++) (void)mount("/dev/null", masked[i], NULL, MS_BIND, NULL);
  must(sethostname("floor", 5), "sethostname");
  must((int)syscall(SYS_pivot_root, ".", "."), "pivot_root");
  must(umount2(".", MNT_DETACH), "umount");
  must(chdir("/"), "chdir");
  if (engine >= 0) start_engine(engine, native, argv);
  execv(argv[0], argv);
  err(98, "%s", argv[0]);
}

int main(int argc, char **argv) {
  if (argc < 3) errx(2, "usage: %s ROOTFS PROGRAM [ARG...]", argv[0]);
  int engine = detached(getenv("FLOOR_ENGINE")), native = detached(getenv("FLOOR_NATIVE"));
  int go[2];
  must(pipe2(go, O_CLOEXEC), "pipe");
  struct clone_args args = {
      .flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP,
      .exit_signal = SIGCHLD,
  };
  char leaves[MOST][512], *above[MOST];
  int count = 0;
  char *list = getenv("FLOOR_CGROUPS");
  for (char *next = list ? strtok(list, ":") : NULL; next && count < MOST; next = strtok(NULL, ":")) {
    snprintf(leaves[count], sizeof leaves[count], "%.400s/floor-%d", next, getpid());
    must(mkdir(leaves[count], 0755), leaves[count]);
    /* To be born in a cgroup of v2 is cheaper than to be moved to it. */
    struct statfs kind;
    must(statfs(next, &kind), next);
    above[count] = next;
    if (kind.f_type == CGROUP2_SUPER_MAGIC) {
      int leaf = open(leaves[count], O_PATH | O_CLOEXEC);
      must(leaf, leaves[count]);
      args.cgroup = leaf;
      args.flags |= CLONE_INTO_CGROUP;
      above[count] = NULL;
    }
    count++;
  }
  pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
  must(pid, "clone3");
  char byte = 0;
  if (pid == 0) {
    if (read(go[0], &byte, 1) != 1) _exit(97);
    inside(argv[1], argv + 2, engine, native);
  }
  for (int i = 0; i < count; i++)
    if (above[i]) enter_cgroup(leaves[i], above[i], pid);
  must((int)write(go[1], &byte, 1), "pipe");
  int status = 0;
  must(waitpid(pid, &status, 0), "waitpid");
  while (count > 0) must(rmdir(leaves[--count]), "rmdir");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 96;
}
