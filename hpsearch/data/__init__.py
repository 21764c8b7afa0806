"""The data room: from a data set's name to float32 images on the device.

`catalog` finds, verifies and splits what a study trains and validates on; `resident` puts it on the device.
`held_out` alone reads test images, and only the vault may import it.
"""
