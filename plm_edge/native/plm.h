/* placeholder, replaced soon */
#ifndef PLM_H
#define PLM_H
#define PLM_API __attribute__((visibility("default")))
#endif
